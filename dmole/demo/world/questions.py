"""Questions and answers about a scene, each in two wordings."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from dmole.demo.world.world import COLOR_NAMES, LATTICE, SHAPES, Scene, Thing

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
COUNT_WORDS = ("zero", "one", "two", "three")
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
        color = COLOR_NAMES[scene.things[0].color]
        return f"the {scene.text_kind} {' '.join(scene.text)} in {color}"
    return " and ".join(f"a {thing.name}" for thing in left_to_right(scene))


def left_to_right(scene: Scene) -> list[Thing]:
    """Return the things of a scene, sorted by column and row of the center."""
    return sorted(scene.things, key=lambda thing: thing.center)


def refer_to(rng: random.Random, scene: Scene, thing: Thing) -> str:
    """Return a phrase that fits `thing` alone, so that color and shape are both needed."""
    phrases = [thing.name] * 2
    if alone_in_shape(scene, thing):
        phrases += [SHAPES[thing.label]] * 2
    if alone_in_color(scene, thing):
        phrases.append(f"{COLOR_NAMES[thing.color]} shape")
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
    if scene.text_kind is not None:
        return _ask_text(rng, scene)
    return [
        *_ask_whole(rng, scene),
        *(question for thing in scene.things for question in _ask_thing(rng, scene, thing)),
        *_ask_exist(rng, scene),
        *_ask_pair(rng, scene),
    ]


def _asker(rng: random.Random) -> Callable[..., Question]:
    def ask(kind: str, answer: str, *words: str, things: tuple[Thing, ...] = ()) -> Question:
        return Question(kind, rng.choice(WORDINGS[kind]).format(*words), answer, things)

    return ask


def _ask_text(rng: random.Random, scene: Scene) -> list[Question]:
    ask = _asker(rng)
    text = (scene.text_thing,)
    return [
        ask(f"read_{scene.text_kind}", " ".join(scene.text)),
        ask("text_color", COLOR_NAMES[text[0].color]),
        ask("text_region", region(text[0]), things=text),
        ask("text_box", location(text[0].box), things=text),
        ask("text_caption", caption(scene)),
    ]


def _ask_whole(rng: random.Random, scene: Scene) -> list[Question]:
    ask = _asker(rng)
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


def _ask_thing(rng: random.Random, scene: Scene, thing: Thing) -> list[Question]:
    ask = _asker(rng)
    color, shape, things = COLOR_NAMES[thing.color], SHAPES[thing.label], (thing,)
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


def _ask_exist(rng: random.Random, scene: Scene) -> list[Question]:
    """Return two yes/no questions; a wrong name usually shares a word with a thing."""
    ask = _asker(rng)
    present = {(thing.color, thing.label) for thing in scene.things}
    questions = []
    for _ in range(2):
        thing = rng.choice(scene.things)
        color, label = thing.color, thing.label
        exists = rng.random() < 0.5
        while not exists and (color, label) in present:
            change = rng.random()
            color = rng.randrange(len(COLOR_NAMES)) if change < 0.55 else thing.color
            label = rng.randrange(len(SHAPES)) if change > 0.45 else thing.label
        name = f"{COLOR_NAMES[color]} {SHAPES[label]}"
        questions.append(ask("exist", "yes" if exists else "no", name))
    return questions


def _ask_pair(rng: random.Random, scene: Scene) -> list[Question]:
    if len(scene.things) < 2:
        return []
    first, second = rng.sample(scene.things, 2)
    side = side_of(first, second)
    if side is None:
        return []
    ask = _asker(rng)
    names = refer_to(rng, scene, first), refer_to(rng, scene, second)
    axis = ("left", "right") if side in ("left", "right") else ("above", "below")
    claim = rng.choice(axis)
    phrase = f"{claim} of" if claim in ("left", "right") else claim
    answer = "yes" if claim == side else "no"
    return [
        ask("relation", answer, names[0], phrase, names[1], things=(first, second)),
        ask("position", side, *names, things=(first, second)),
    ]
