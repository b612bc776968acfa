"""Questions and answers about a scene, each in two wordings."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dmole.demo.world.world import (
    ALL_CLASSES,
    ALL_COLOR_NAMES,
    COLOR_NAMES,
    LATTICE,
    SHAPES,
    Scene,
    Thing,
)

WORDINGS: dict[str, tuple[str, str]] = {
    "color": ("what color is the {} ?", "the {} has which color ?"),
    "shape": ("what shape is {} ?", "which shape is the {} one ?"),
    "count": ("how many shapes are there ?", "count the shapes"),
    "digit_count": ("give the number of shapes as a digit", "how many shapes ? use a digit"),
    "exist": ("is there a {} ?", "do you see a {} ?"),
    "relation": ("is the {} {} the {} ?", "does the {} lie {} the {} ?"),
    "position": ("where is the {} from the {} ?", "on which side is the {} of the {} ?"),
    "region": ("where is the {} ?", "in which part is the {} ?"),
    "box": ("locate the {}", "give the box of the {}"),
    "refer": ("what is at {} ?", "name the shape at {}"),
    "caption": ("describe the image", "what do you see ?"),
    "list": ("list the shapes", "name all shapes"),
    "read_digit": ("what is written ?", "read the text"),
    "read_letter": ("what is written ?", "read the text"),
    "read_number": ("what is written ?", "read the text"),
    "text_color": ("what color is the text ?", "the text has which color ?"),
    "text_region": ("where is the text ?", "in which part is the text ?"),
    "text_box": ("locate the text", "give the box of the text"),
    "text_caption": ("describe the image", "what do you see ?"),
}
"""The kinds of questions, with two wordings each."""
COUNT_WORDS = ("zero", "one", "two", "three", "four")
LONGEST_CAPTION = 2


@dataclass(frozen=True)
class Question:
    """A question about a scene with its answer.

    Args:
        kind: A key of `WORDINGS`.
        text: Text of the question.
        answer: The only correct answer.
        things: The things that the question names, in order.
    """

    kind: str
    text: str
    answer: str
    things: tuple[Thing, ...] = ()


def location(box: tuple[int, int, int, int]) -> str:
    """Return a box as location tokens, such as ``<x3><y4><x7><y8>``."""
    return "<x{}><y{}><x{}><y{}>".format(*box)


def region(thing: Thing) -> str:
    """Return the region of the image that a thing is in, such as ``top left``."""
    column, row = thing.center
    low, high = LATTICE / 3, 2 * LATTICE / 3
    vertical = "top" if row < low else "bottom" if row > high else "middle"
    horizontal = "left" if column < low else "right" if column > high else "center"
    return f"{vertical} {horizontal}"


def caption(scene: Scene) -> str:
    """Return the things of a scene from left to right, as in ``a red star and a blue cross``."""
    if scene.text_kind is not None:
        color = scene.things[0].color_name
        return f"the {scene.text_kind} {' '.join(scene.text)} in {color}"
    return " and ".join(f"a {thing.name}" for thing in left_to_right(scene))


def left_to_right(scene: Scene) -> list[Thing]:
    """Return the things of a scene, sorted by column and row of the center."""
    return sorted(scene.things, key=lambda thing: thing.center)


def refer_to(rng: random.Random, scene: Scene, thing: Thing) -> str:
    """Return a phrase that fits `thing` alone, so that color and shape are both needed."""
    phrases = [thing.name] * 2
    if alone_in_shape(scene, thing):
        phrases += [thing.class_name] * 2
    if alone_in_color(scene, thing):
        phrases.append(f"{thing.color_name} shape")
    return rng.choice(phrases)


def alone_in_shape(scene: Scene, thing: Thing) -> bool:
    """Return whether no other thing has this shape."""
    return sum(other.label == thing.label for other in scene.things) == 1


def alone_in_color(scene: Scene, thing: Thing) -> bool:
    """Return whether no other thing has this color."""
    return sum(other.color == thing.color for other in scene.things) == 1


def side_of(first: Thing, second: Thing) -> str | None:
    """Return the side of `second` on which `first` is; None if they are too close."""
    across = first.center[0] - second.center[0]
    down = first.center[1] - second.center[1]
    if max(abs(across), abs(down)) < 2:
        return None
    if abs(across) >= abs(down):
        return "left" if across < 0 else "right"
    return "above" if down < 0 else "below"


def ask_all(rng: random.Random, scene: Scene) -> list[Question]:
    """Return all questions about a scene, each in one of its two wordings."""
    ask = Asker(rng, WORDINGS)
    return ask_text(ask, scene) if scene.text_kind is not None else ask_shapes(ask, scene)


class Asker:
    """Make questions from a table of wordings.

    Args:
        rng: Source of randomness.
        wordings: Two wordings of each kind of question.
        colors: Names of the colors that a question may ask for.
        shapes: Names of the shapes that a question may ask for.
    """

    def __init__(
        self,
        rng: random.Random,
        wordings: Mapping[str, tuple[str, str]],
        colors: Sequence[str] = COLOR_NAMES,
        shapes: Sequence[str] = SHAPES,
    ) -> None:
        self.rng, self.wordings = rng, wordings
        self.colors = [ALL_COLOR_NAMES.index(name) for name in colors]
        self.shapes = [ALL_CLASSES.index(name) for name in shapes]

    def __call__(
        self, kind: str, answer: str, *words: str, things: tuple[Thing, ...] = ()
    ) -> Question:
        """Return a question of a kind in one of its wordings."""
        text = self.rng.choice(self.wordings[kind]).format(*words)
        return Question(kind, text, answer, things)


def ask_text(ask: Asker, scene: Scene) -> list[Question]:
    """Return the questions about a scene of text."""
    text = (scene.text_thing,)
    return [
        ask(f"read_{scene.text_kind}", " ".join(scene.text)),
        ask("text_color", text[0].color_name),
        ask("text_region", region(text[0]), things=text),
        ask("text_box", location(text[0].box), things=text),
        ask("text_caption", caption(scene)),
    ]


def ask_shapes(ask: Asker, scene: Scene) -> list[Question]:
    """Return the questions about a scene of shapes."""
    return [
        *_ask_whole(ask, scene),
        *(question for thing in scene.things for question in _ask_thing(ask, scene, thing)),
        *_ask_exist(ask, scene),
        *_ask_pair(ask, scene),
    ]


def _ask_whole(ask: Asker, scene: Scene) -> list[Question]:
    count = len(scene.things)
    names = " ".join(thing.name for thing in left_to_right(scene))
    questions = [
        ask("count", COUNT_WORDS[count]),
        ask("digit_count", str(count)),
        ask("list", names),
    ]
    if count <= LONGEST_CAPTION:
        questions.append(ask("caption", caption(scene)))
    return questions


def _ask_thing(ask: Asker, scene: Scene, thing: Thing) -> list[Question]:
    rng = ask.rng
    color, shape, things = thing.color_name, thing.class_name, (thing,)
    questions = [
        ask("region", region(thing), refer_to(rng, scene, thing), things=things),
        ask("box", location(thing.box), refer_to(rng, scene, thing), things=things),
        ask("refer", f"a {thing.name}", location(thing.box), things=things),
    ]
    if alone_in_shape(scene, thing):
        questions.append(ask("color", color, shape, things=things))
    if alone_in_color(scene, thing):
        questions.append(ask("shape", shape, color, things=things))
    return questions


def _ask_exist(ask: Asker, scene: Scene) -> list[Question]:
    """Return two yes/no questions; a wrong name usually shares a word with a thing."""
    rng = ask.rng
    present = {(thing.color, thing.label) for thing in scene.things}
    questions = []
    for _ in range(2):
        thing = rng.choice(scene.things)
        color, label = thing.color, thing.label
        exists = rng.random() < 0.5
        while not exists and (color, label) in present:
            change = rng.random()
            color = rng.choice(ask.colors) if change < 0.55 else thing.color
            label = rng.choice(ask.shapes) if change > 0.45 else thing.label
        name = f"{ALL_COLOR_NAMES[color]} {ALL_CLASSES[label]}"
        questions.append(ask("exist", "yes" if exists else "no", name))
    return questions


def _ask_pair(ask: Asker, scene: Scene) -> list[Question]:
    rng = ask.rng
    if len(scene.things) < 2:
        return []
    first, second = rng.sample(scene.things, 2)
    side = side_of(first, second)
    if side is None:
        return []
    names = refer_to(rng, scene, first), refer_to(rng, scene, second)
    axis = ("left", "right") if side in ("left", "right") else ("above", "below")
    claim = rng.choice(axis)
    phrase = f"{claim} of" if claim in ("left", "right") else claim
    answer = "yes" if claim == side else "no"
    return [
        ask("relation", answer, names[0], phrase, names[1], things=(first, second)),
        ask("position", side, *names, things=(first, second)),
    ]
