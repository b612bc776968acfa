"""The wide world: scenes on light, dark and tinted grounds, with things at any pixel.

Beside the tiny model's world, it has three more colors and shapes, hollow shapes, shapes of 24
pixels, scenes of four shapes and pairs of letters. The deep base model is pretrained on it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from dmole.demo.world.masks import glyph_mask
from dmole.demo.world.scenes import PLACING_ATTEMPTS, filled_mask
from dmole.demo.world.world import (
    ALL_CLASSES,
    CELL,
    DARK_GROUNDS,
    FIRST_DIGIT,
    FIRST_LETTER,
    GLYPH_WIDTHS,
    LATTICE,
    LIGHT_GROUNDS,
    MORE_SHAPES,
    NUMBER_HEIGHTS,
    SHAPES,
    Canvas,
    Color,
    Scene,
    TextKind,
    Thing,
)

WIDE_SHAPES = SHAPES + MORE_SHAPES
SHAPE_LABELS = tuple(ALL_CLASSES.index(name) for name in WIDE_SHAPES)
MIDDLE_GROUNDS = ((96, 112, 132), (150, 132, 104), (104, 140, 112))
WIDE_SIDES = (12, 16, 20, 24)
"""Sides of shapes in pixels."""
SMALL = 16
"""Largest side that is called small, in pixels."""
HOLLOW_SIDES = (20, 24)
TEXT_SHARE, HOLLOW_SHARE = 0.35, 0.3
COUNTS = (1, 2, 2, 3, 3, 4)
WIDE_TEXTS: tuple[TextKind, ...] = ("digit", "letter", "letter", "number", "pair")
FIRST_MORE = ALL_CLASSES.index(MORE_SHAPES[0])


def wide_scene(rng: random.Random) -> Scene:
    """Return a scene of text (probability 0.35) or of one to four shapes."""
    return wide_text(rng) if rng.random() < TEXT_SHARE else wide_shapes(rng)


def wide_ground(rng: random.Random) -> Color:
    """Return a light (0.4), dark (0.4) or middle ground."""
    grounds = (LIGHT_GROUNDS, LIGHT_GROUNDS, DARK_GROUNDS, DARK_GROUNDS, MIDDLE_GROUNDS)
    return rng.choice(rng.choice(grounds))


def wide_shapes(
    rng: random.Random, count: int | None = None, *, sides: Sequence[int] = WIDE_SIDES
) -> Scene:
    """Return a scene of `count` (default one to four) shapes, distinct in color or shape.

    Args:
        rng: Source of randomness.
        count: Number of shapes; fewer if there is no room.
        sides: Sides to draw from, in pixels.
    """
    canvas = Canvas(rng, ground=wide_ground(rng))
    target = count or rng.choice(COUNTS)
    things: list[Thing] = []
    for _ in range(PLACING_ATTEMPTS):
        if len(things) == target:
            break
        thing = _random_shape(rng, canvas.palette, sides)
        if not any(_clash(thing, other) for other in things):
            things.append(thing)
            mask = filled_mask(thing.label, thing.width * CELL, thing.fill)
            canvas.paste(mask, thing, canvas.thing_tint(thing.color))
    return Scene(canvas.image(), tuple(things))


def _random_shape(rng: random.Random, palette: Sequence[int], sides: Sequence[int]) -> Thing:
    side = rng.choice(sides)
    hollow = side in HOLLOW_SIDES and rng.random() < HOLLOW_SHARE
    cells = side // CELL
    square = Thing(rng.choice(SHAPE_LABELS), rng.choice(palette), 0, 0, cells, cells)
    return replace(placed(rng, square), fill="hollow" if hollow else "solid")


def placed(rng: random.Random, thing: Thing) -> Thing:
    """Return a thing moved to a random pixel of the image."""
    left, across = _position(rng, LATTICE - thing.width)
    top, down = _position(rng, LATTICE - thing.height)
    return replace(thing, left=left, top=top, shift=(across, down))


def _position(rng: random.Random, last: int) -> tuple[int, int]:
    """Return the lattice cell that a random pixel rounds to, and the rest in pixels."""
    pixel = rng.randint(0, last * CELL)
    cell = (pixel + CELL // 2) // CELL
    return cell, pixel - cell * CELL


def _clash(first: Thing, second: Thing) -> bool:
    """Return whether two shapes touch or look the same."""
    left, top, right, bottom = first.drawn_box
    other_left, other_top, other_right, other_bottom = second.drawn_box
    apart = left >= other_right or other_left >= right or top >= other_bottom or other_top >= bottom
    same = (first.label, first.color) == (second.label, second.color)
    return same or not apart


def wide_text(rng: random.Random, text_kind: TextKind | None = None) -> Scene:
    """Return a scene with a digit, a letter, a two-digit number or two letters."""
    canvas = Canvas(rng, ground=wide_ground(rng))
    kind = rng.choice(WIDE_TEXTS) if text_kind is None else text_kind
    digits, letters = (FIRST_DIGIT, FIRST_LETTER), (FIRST_LETTER, FIRST_MORE)
    count = 2 if kind in ("number", "pair") else 1
    span = digits if kind in ("digit", "number") else letters
    labels = [rng.randrange(*span) for _ in range(count)]
    height = rng.choice(NUMBER_HEIGHTS if count == 2 else tuple(GLYPH_WIDTHS))
    return written(canvas, labels, height, kind)


def written(canvas: Canvas, labels: Sequence[int], height: int, kind: TextKind) -> Scene:
    """Draw glyphs side by side at a random pixel, in one random color.

    Args:
        canvas: Where to draw.
        labels: Indices into `ALL_CLASSES`.
        height: Height of a glyph, in pixels.
        kind: What the text is.
    """
    rng = canvas.rng
    columns, rows = GLYPH_WIDTHS[height] // CELL, height // CELL
    color = rng.choice(canvas.palette)
    line = placed(rng, Thing(-1, color, 0, 0, columns * len(labels), rows))
    tint = canvas.thing_tint(color)
    glyphs = []
    for index, label in enumerate(labels):
        glyph = replace(line, label=label, left=line.left + index * columns, width=columns)
        canvas.paste(glyph_mask(label, height), glyph, tint)
        glyphs.append(glyph)
    text = "".join(ALL_CLASSES[label] for label in labels)
    return Scene(canvas.image(), tuple(glyphs), text, kind)
