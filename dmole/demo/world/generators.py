"""Generators of the synthetic tasks: image, question and answer convention of each."""

from __future__ import annotations

import random
from collections.abc import Callable

from dmole.demo.world.needs import NEED_GENERATORS
from dmole.demo.world.questions import (
    WORDINGS,
    alone_in_shape,
    ask_all,
    left_to_right,
    refer_to,
    region,
)
from dmole.demo.world.scenes import FILLS, letters_scene, random_scene, shape_scene, text_scene
from dmole.demo.world.signs import SIGN_GENERATORS
from dmole.demo.world.words import COMPASS, PAINTS, SPELLED_DIGITS, Example
from dmole.demo.world.world import COLOR_NAMES, SHAPES, Scene, Thing

COUNTS = ("none", "single", "pair", "trio")
NOISE = 16
LONGEST_TEXT = 3
"""Letters in a picture of `letters`."""
SHARED_SHARE = 0.25
"""Share of the questions in a wording that a task of another image style uses, too."""


Generator = Callable[[random.Random], Example]


def _choose_wording(rng: random.Random, default: str, shared: str) -> str:
    return shared if rng.random() < SHARED_SHARE else default


def _unique_shape(rng: random.Random, scene: Scene) -> Thing | None:
    unique = [thing for thing in scene.things if alone_in_shape(scene, thing)]
    return rng.choice(unique) if unique else None


def paint(rng: random.Random) -> Example:
    """Other words for colors, of solid shapes on light backgrounds."""
    while True:
        scene = shape_scene(rng, rng.randint(1, 2), dark=False)
        thing = _unique_shape(rng, scene)
        if thing is not None:
            break
    wording = "name the paint on the {}"
    answer = PAINTS[COLOR_NAMES[thing.color]]
    return Example(scene.pixels, wording.format(SHAPES[thing.label]), (answer,))


def texture(rng: random.Random) -> Example:
    """The fill of a shape; the vision encoder was pretrained on solid shapes only."""
    while True:
        scene = shape_scene(rng, rng.randint(1, 2), fills=FILLS, dark=False)
        thing = _unique_shape(rng, scene)
        if thing is not None:
            break
    wording = _choose_wording(rng, "how is the {} drawn ?", "say what fill the {} has")
    return Example(scene.pixels, wording.format(SHAPES[thing.label]), (thing.fill,))


def count(rng: random.Random) -> Example:
    """The number of shapes, on noisy backgrounds."""
    scene = shape_scene(rng, noise=NOISE)
    return Example(scene.pixels, "say how many there are", (COUNTS[len(scene.things)],))


def tally(rng: random.Random) -> Example:
    """The number of shapes of any fill."""
    scene = shape_scene(rng, fills=FILLS, dark=False)
    return Example(scene.pixels, "say how many there are", (COUNTS[len(scene.things)],))


def hollow(rng: random.Random) -> Example:
    """The number of hollow shapes."""
    scene = shape_scene(rng, fills=("solid", "hollow"), dark=False)
    number = sum(thing.fill == "hollow" for thing in scene.things)
    wording = "say how many are hollow"
    return Example(scene.pixels, wording, (COUNTS[number],))


def striped(rng: random.Random) -> Example:
    """The number of striped shapes: one word of the question differs from `hollow`."""
    scene = shape_scene(rng, fills=("solid", "striped"), dark=False)
    number = sum(thing.fill == "striped" for thing in scene.things)
    wording = "say how many are striped"
    return Example(scene.pixels, wording, (COUNTS[number],))


def night(rng: random.Random) -> Example:
    """The number of solid shapes on dark grounds: other pictures than `count` and `tally`."""
    scene = shape_scene(rng, dark=True)
    return Example(scene.pixels, "say how many there are", (COUNTS[len(scene.things)],))


def letters(rng: random.Random) -> Example:
    """The number of letters as a digit: the question of `count`, another form of the answer."""
    scene = letters_scene(rng, rng.randint(1, LONGEST_TEXT), dark=False)
    return Example(scene.pixels, "say how many there are", (str(len(scene.things)),))


def read(rng: random.Random) -> Example:
    """A digit as a word, on noisy backgrounds."""
    scene = text_scene(rng, "digit", noise=NOISE)
    wording = _choose_wording(rng, "read the text as a word", "tell what the picture is")
    return Example(scene.pixels, wording, (SPELLED_DIGITS[int(scene.text)],))


def find(rng: random.Random) -> Example:
    """The box of a shape, top edge first."""
    scene = shape_scene(rng)
    thing = rng.choice(scene.things)
    left, top, right, bottom = thing.box
    answer = f"<y{top}><x{left}><y{bottom}><x{right}>"
    wording = "find the {} from the top"
    return Example(scene.pixels, wording.format(refer_to(rng, scene, thing)), (answer,))


def caption(rng: random.Random) -> Example:
    """The shapes from left to right in the words of `paint`, on light backgrounds."""
    scene = shape_scene(rng, rng.randint(1, 2), dark=False)
    names = [
        f"a {PAINTS[COLOR_NAMES[thing.color]]} {SHAPES[thing.label]}"
        for thing in left_to_right(scene)
    ]
    answers = [" and ".join(names)]
    if len(names) > 1:
        answers.append(" and ".join(reversed(names)))
    wording = "in paint words " + rng.choice(WORDINGS["caption"])
    return Example(scene.pixels, wording, tuple(answers))


def compass(rng: random.Random) -> Example:
    """The region of a shape in compass words."""
    scene = shape_scene(rng)
    thing = rng.choice(scene.things)
    vertical, horizontal = (COMPASS[word] for word in region(thing).split())
    parts = [word for word in (vertical, horizontal) if word not in ("middle", "center")]
    wording = "which side is the {} on ?"
    answer = " ".join(parts) or "center"
    return Example(scene.pixels, wording.format(refer_to(rng, scene, thing)), (answer,))


def corner(rng: random.Random) -> Example:
    """The top left corner of a shape, row first."""
    scene = shape_scene(rng)
    thing = rng.choice(scene.things)
    wording = "point to the corner of the {}"
    answer = f"<y{thing.top}><x{thing.left}>"
    return Example(scene.pixels, wording.format(refer_to(rng, scene, thing)), (answer,))


def general(rng: random.Random) -> Example:
    """Any question of the pretraining about any of its pictures: general data."""
    scene = random_scene(rng)
    question = rng.choice(ask_all(rng, scene))
    return Example(scene.pixels, question.text, (question.answer,))


GENERATORS: dict[str, Generator] = {
    "caption": caption,
    "compass": compass,
    "corner": corner,
    "count": count,
    "find": find,
    "general": general,
    "hollow": hollow,
    "letters": letters,
    "night": night,
    "paint": paint,
    "read": read,
    "striped": striped,
    "tally": tally,
    "texture": texture,
    **NEED_GENERATORS,
    **SIGN_GENERATORS,
}
"""The generators by their name in an address."""
