"""Tasks with one wording on one kind of picture: a sign in the picture tells what is asked."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from dmole.demo.world.masks import glyph_mask, shape_mask
from dmole.demo.world.questions import region, side_of
from dmole.demo.world.scenes import PLACING_ATTEMPTS
from dmole.demo.world.words import COMPASS, PAINTS, Example
from dmole.demo.world.world import (
    CELL,
    COLOR_NAMES,
    FIRST_LETTER,
    GLYPH_WIDTHS,
    LATTICE,
    SHAPES,
    Canvas,
    Pixels,
    Thing,
)

WORDING = "answer the question of the sign"
LARGE, SMALL, SIGN = 24, 12, 16
"""Sizes in pixels of the two shapes, and the height of the sign."""
BLACK = COLOR_NAMES.index("black")
SHAPE_COLORS = tuple(i for i, name in enumerate(COLOR_NAMES) if name not in ("black", "white"))
FORMS = ("ring", "block", "wedge", "spark", "plus")
"""Other names of `SHAPES`."""
TURNS = {"left": "west", "right": "east", "above": "north", "below": "south"}
OPPOSITE = {"west": "east", "east": "west", "north": "south", "south": "north"}


@dataclass(frozen=True)
class SignScene:
    """A picture with a large shape, a small shape and a letter as sign.

    Args:
        pixels: Array of shape ``(64, 64, 3)``, dtype uint8.
        large: The large shape.
        small: The small shape, of another color.
        side: Side of the small shape on which the large one is, as in `side_of`.
    """

    pixels: Pixels
    large: Thing
    small: Thing
    side: str


def sign_scene(rng: random.Random, sign: str) -> SignScene:
    """Return a random picture with a sign; all but the sign has one distribution.

    Args:
        rng: Source of randomness.
        sign: A capital letter.
    """
    while True:
        things = sign_and_squares(rng, sign, (LARGE, SMALL))
        if things is None or (side := side_of(*things[1:])) is None:
            continue
        colors = rng.sample(SHAPE_COLORS, 2)
        large, small = (
            replace(square, label=rng.randrange(len(SHAPES)), color=color)
            for square, color in zip(things[1:], colors, strict=True)
        )
        canvas = Canvas(rng, dark=False)
        paste_sign(canvas, things[0])
        for thing in (large, small):
            mask = shape_mask(thing.label, thing.width * CELL)
            canvas.paste(mask, thing, canvas.thing_tint(thing.color))
        return SignScene(canvas.image(), large, small, side)


def sign_and_squares(rng: random.Random, sign: str, sides: Sequence[int]) -> list[Thing] | None:
    """Return a sign and squares at random places that do not overlap; None without success.

    Args:
        rng: Source of randomness.
        sign: A capital letter.
        sides: Sides of the squares in pixels, multiples of `CELL`; label and color are 0.
    """
    label = FIRST_LETTER + ord(sign) - ord("A")
    things = [_placed(rng, label, GLYPH_WIDTHS[SIGN] // CELL, SIGN // CELL)]
    for side in sides:
        for _ in range(PLACING_ATTEMPTS):
            square = _placed(rng, 0, side // CELL, side // CELL)
            if all(_apart(square, other) for other in things):
                things.append(square)
                break
        else:
            return None
    return things


def paste_sign(canvas: Canvas, sign: Thing) -> None:
    """Draw a sign in black."""
    canvas.paste(glyph_mask(sign.label, SIGN), sign, canvas.thing_tint(BLACK))


def _placed(rng: random.Random, label: int, columns: int, rows: int) -> Thing:
    left, top = rng.randint(0, LATTICE - columns), rng.randint(0, LATTICE - rows)
    return Thing(label, 0, left, top, columns, rows)


def _apart(first: Thing, second: Thing) -> bool:
    left, top, right, bottom = first.box
    other_left, other_top, other_right, other_bottom = second.box
    return left >= other_right or other_left >= right or top >= other_bottom or other_top >= bottom


def compass(thing: Thing) -> str:
    """Return the region of a thing in compass words."""
    words = [COMPASS[word] for word in region(thing).split()]
    return " ".join(word for word in words if word not in ("middle", "center")) or "center"


def _turned(label: int) -> str:
    """Return the name that `FORMS` gives the next shape."""
    return FORMS[(label + 1) % len(FORMS)]


SIGN_TASKS: dict[str, tuple[str, Callable[[SignScene], str]]] = {
    "sign_paint_large": ("A", lambda scene: PAINTS[COLOR_NAMES[scene.large.color]]),
    "sign_paint_small": ("H", lambda scene: PAINTS[COLOR_NAMES[scene.small.color]]),
    "sign_place_large": ("M", lambda scene: compass(scene.large)),
    "sign_place_small": ("R", lambda scene: compass(scene.small)),
    "sign_form": ("E", lambda scene: FORMS[scene.large.label]),
    "sign_form_turned": ("T", lambda scene: _turned(scene.large.label)),
    "sign_side": ("X", lambda scene: TURNS[scene.side]),
    "sign_side_turned": ("S", lambda scene: OPPOSITE[TURNS[scene.side]]),
}
"""Sign and answer of each task. The first two pairs share what they ask of two shapes, and the
others give other answers to the same."""


def _task(sign: str, answer: Callable[[SignScene], str]) -> Callable[[random.Random], Example]:
    def generate(rng: random.Random) -> Example:
        scene = sign_scene(rng, sign)
        return Example(scene.pixels, WORDING, (answer(scene),))

    return generate


SIGN_GENERATORS = {name: _task(*task) for name, task in SIGN_TASKS.items()}
"""The generators by their name in an address."""
