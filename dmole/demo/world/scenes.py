"""Random scenes of the world, and dense labels of their patches."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dmole.demo.world.masks import glyph_mask, shape_mask
from dmole.demo.world.world import (
    CELL,
    CLASSES,
    FIRST_DIGIT,
    FIRST_LETTER,
    GLYPH_WIDTHS,
    LATTICE,
    NUMBER_HEIGHTS,
    SHAPE_SIZES,
    SHAPES,
    Canvas,
    Mask,
    Scene,
    TextKind,
    Thing,
)

FILLS = ("solid", "hollow", "striped", "dotted")
"""Ways to fill a shape. The pretraining of the tiny model contains "solid" only."""
_RIM = 5  # side of the erosion window in pixels, for a rim of two pixels
_STRIPE = 2
FILL_SIZES = (20, 24)
"""Sides of shapes with various fills, in pixels; smaller shapes cannot show a fill."""
TEXT_SHARE = 0.4
TEXT_KINDS: tuple[TextKind, ...] = ("digit", "letter", "letter", "number", "number")
PLACING_ATTEMPTS = 40
IGNORED = -100
LEAST_COVER = 0.5
"""Area above which a thing labels a patch, in cells; on the lattice it covers at least one."""


def random_scene(rng: random.Random) -> Scene:
    """Return a scene of text (probability 0.4) or of one to three shapes."""
    return text_scene(rng) if rng.random() < TEXT_SHARE else shape_scene(rng)


def text_scene(
    rng: random.Random,
    text_kind: TextKind | None = None,
    *,
    dark: bool | None = None,
    noise: int = 0,
) -> Scene:
    """Return a scene with a digit, a letter or a two-digit number."""
    canvas = Canvas(rng, dark=dark, noise=noise)
    kind = rng.choice(TEXT_KINDS) if text_kind is None else text_kind
    if kind == "number":
        labels = [FIRST_DIGIT + rng.randrange(10) for _ in range(2)]
        height = rng.choice(NUMBER_HEIGHTS)
    else:
        low, high = (FIRST_DIGIT, FIRST_LETTER) if kind == "digit" else (FIRST_LETTER, len(CLASSES))
        labels = [rng.randrange(low, high)]
        height = rng.choice(tuple(GLYPH_WIDTHS))
    return _written(canvas, labels, height, kind)


def letters_scene(rng: random.Random, count: int, *, dark: bool | None = None) -> Scene:
    """Return a scene of one to three letters in a row; the pretraining has no more than one."""
    canvas = Canvas(rng, dark=dark)
    labels = [rng.randrange(FIRST_LETTER, len(CLASSES)) for _ in range(count)]
    return _written(canvas, labels, rng.choice(NUMBER_HEIGHTS), "letter")


def _written(canvas: Canvas, labels: Sequence[int], height: int, kind: TextKind) -> Scene:
    """Draw glyphs side by side at a random place, in one random color."""
    rng = canvas.rng
    columns, rows = GLYPH_WIDTHS[height] // CELL, height // CELL
    left = rng.randint(0, LATTICE - columns * len(labels))
    top = rng.randint(0, LATTICE - rows)
    color = rng.choice(canvas.palette)
    tint = canvas.thing_tint(color)
    glyphs = []
    for index, label in enumerate(labels):
        glyph = Thing(label, color, left + index * columns, top, columns, rows)
        canvas.paste(glyph_mask(label, height), glyph, tint)
        glyphs.append(glyph)
    text = "".join(CLASSES[label] for label in labels)
    return Scene(canvas.image(), tuple(glyphs), text, kind)


def shape_scene(
    rng: random.Random,
    count: int | None = None,
    *,
    dark: bool | None = None,
    noise: int = 0,
    fills: Sequence[str] = ("solid",),
) -> Scene:
    """Return a scene of `count` (default one to three) shapes, distinct in color or shape.

    Args:
        rng: Source of randomness.
        count: Number of shapes; fewer if there is no room.
        dark: Whether the background is dark; by default in one of five scenes.
        noise: Maximum change of a background pixel, in levels of 0 to 255.
        fills: Names of `FILLS` to draw from.
    """
    canvas = Canvas(rng, dark=dark, noise=noise)
    target = count or rng.choice((1, 2, 2, 3, 3))
    things: list[Thing] = []
    for _ in range(PLACING_ATTEMPTS):
        if len(things) == target:
            break
        thing = random_shape(rng, canvas, fills)
        if not any(_clash(thing, other) for other in things):
            things.append(thing)
            mask = filled_mask(thing.label, thing.width * CELL, thing.fill)
            canvas.paste(mask, thing, canvas.thing_tint(thing.color))
    return Scene(canvas.image(), tuple(things))


def random_shape(rng: random.Random, canvas: Canvas, fills: Sequence[str] = ("solid",)) -> Thing:
    """Return a shape of random class, color, size, position and fill."""
    sizes = SHAPE_SIZES if tuple(fills) == ("solid",) else FILL_SIZES
    side = rng.choice(sizes) // CELL
    left, top = rng.randint(0, LATTICE - side), rng.randint(0, LATTICE - side)
    label, color = rng.randrange(len(SHAPES)), rng.choice(canvas.palette)
    # a single fill uses no random number, so the pretraining scenes do not depend on fills
    fill = fills[0] if len(fills) == 1 else rng.choice(fills)
    return Thing(label, color, left, top, side, side, fill)


def _clash(first: Thing, second: Thing) -> bool:
    """Return whether two shapes overlap or look the same."""
    left, top, right, bottom = first.box
    other_left, other_top, other_right, other_bottom = second.box
    apart = left >= other_right or other_left >= right or top >= other_bottom or other_top >= bottom
    same = (first.label, first.color) == (second.label, second.color)
    return same or not apart


def dense_labels(scene: Scene, patches: int = 8) -> npt.NDArray[np.int64]:
    """Return the class, color and box of the thing in each patch of the image.

    A patch belongs to the thing that covers most of it, if that is more than half a cell. Boxes
    are in lattice cells.

    Args:
        scene: The scene.
        patches: Number of patches per row and column.

    Returns:
        Array of shape ``(6, patches ** 2)``: color + 1 and class + 1 (0 = background), then the
        left, top, right, bottom edge of the thing in cells (-100 for background).
    """
    labels = np.full((6, patches, patches), IGNORED, np.int64)
    labels[:2] = 0
    most = np.full((patches, patches), LEAST_COVER)
    step = LATTICE // patches
    edges = np.arange(patches) * step
    for thing in scene.things:
        left, top, right, bottom = thing.drawn_box
        columns = np.clip(np.minimum(edges + step, right) - np.maximum(edges, left), 0, None)
        rows = np.clip(np.minimum(edges + step, bottom) - np.maximum(edges, top), 0, None)
        covered = rows[:, None] * columns[None]
        larger = covered > most
        most = np.where(larger, covered, most)
        for row, value in enumerate((thing.color + 1, thing.label + 1, *thing.box)):
            labels[row][larger] = value
    return labels.reshape(6, -1)


@functools.cache
def filled_mask(label: int, size: int, fill: str) -> Mask:
    """Return the coverage in [0, 1] of a shape in one of `FILLS`, of shape ``(size, size)``.

    Raises:
        ValueError: If the fill is unknown.
    """
    if fill not in FILLS:
        raise ValueError(f"unknown fill {fill!r}; known are {', '.join(FILLS)}")
    mask = shape_mask(label, size)
    if fill == "solid":
        return mask
    inner = _eroded(mask)
    if fill == "hollow":
        return mask - inner
    rows, columns = np.indices(mask.shape) // _STRIPE
    gap = rows % 2 == 1 if fill == "striped" else (rows % 2 == 1) & (columns % 2 == 1)
    return np.where(gap, np.float32(0), mask)


def _eroded(mask: Mask) -> Mask:
    """Return the part of a mask at least two pixels from its rim."""
    padded = np.pad(mask, _RIM // 2)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (_RIM, _RIM))
    eroded: Mask = windows.min((-1, -2))
    return eroded
