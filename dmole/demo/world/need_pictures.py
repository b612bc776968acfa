"""Pictures that no pretraining contains: veiled, dim, and of an invented script."""

from __future__ import annotations

import functools
import itertools
import random

import numpy as np
from PIL import Image, ImageDraw

from dmole.demo.world.wide import placed, wide_ground
from dmole.demo.world.world import CELL, SIZE, Canvas, Mask, Pixels, Thing

STRIPE = 2
"""Height of a stripe of the veil, in pixels."""
VEIL = 60
"""How much brighter or darker a stripe of the veil makes its pixels, in levels."""
DUSK_SHARE = 0.25
"""Share of the light that is left at dusk."""
DUSK_TINT = (18, 14, 40)
"""Light of dusk itself, in levels."""
SIGNS, POINTS, STROKES = 10, 3, 4
"""Signs of the script; each joins points of a 3x3 grid by four strokes."""
SCRIPT_SIDES = (24, 32)

Stroke = tuple[tuple[int, int], tuple[int, int]]


def veil(pixels: Pixels) -> Pixels:
    """Return a picture behind horizontal stripes, alternately bright and dark.

    The stripes are the same in every patch: subtracting one vector from the patch embeddings
    removes them.
    """
    bright = np.arange(SIZE) // STRIPE % 2 * 2 - 1
    veiled = pixels.astype(np.float32) + VEIL * bright[:, None, None]
    clipped: Pixels = np.clip(veiled, 0, 255).astype(np.uint8)
    return clipped


def dusk(pixels: Pixels) -> Pixels:
    """Return a picture in dim, bluish light.

    Contrasts are a quarter of those of the pretraining: amplifying the patch embeddings about
    their mean restores them.
    """
    dim: Pixels = (pixels * DUSK_SHARE + np.array(DUSK_TINT)).astype(np.uint8)
    return dim


def script(rng: random.Random, sign: int) -> Pixels:
    """Return a sign of the script in one color on a ground of the wide world.

    Args:
        rng: Source of randomness.
        sign: Number of the sign, from 0 to 9.
    """
    canvas = Canvas(rng, ground=wide_ground(rng))
    side = rng.choice(SCRIPT_SIDES)
    thing = placed(rng, Thing(-1, rng.choice(canvas.palette), 0, 0, side // CELL, side // CELL))
    canvas.paste(sign_mask(sign, side), thing, canvas.thing_tint(thing.color))
    return canvas.image()


@functools.cache
def sign_mask(sign: int, side: int) -> Mask:
    """Return the coverage in [0, 1] of a sign of the script, of shape ``(side, side)``."""
    scale = 8
    image = Image.new("L", (side * scale, side * scale), 0)
    draw = ImageDraw.Draw(image)
    margin, step = side * scale * 0.12, side * scale * 0.76 / (POINTS - 1)
    width = round(side * scale * 0.11)
    for stroke in _strokes()[sign]:
        ends = [(margin + column * step, margin + row * step) for column, row in stroke]
        draw.line(ends, fill=255, width=width)
        for column, row in ends:
            half = width / 2
            draw.ellipse([column - half, row - half, column + half, row + half], fill=255)
    small = np.asarray(image.resize((side, side), Image.Resampling.BOX), np.float32)
    covered: Mask = small / np.float32(255)
    return covered


@functools.cache
def _strokes() -> tuple[frozenset[Stroke], ...]:
    """Return the strokes of all signs; two signs have at most one in common."""
    rng = random.Random("script 3")  # of twelve, the signs that differ most
    points = [(column, row) for column in range(POINTS) for row in range(POINTS)]
    signs: list[frozenset[Stroke]] = []
    while len(signs) < SIGNS:
        path = rng.sample(points, STROKES + 1)
        strokes = frozenset((min(pair), max(pair)) for pair in itertools.pairwise(path))
        if all(len(strokes & other) < 2 for other in signs):
            signs.append(strokes)
    return tuple(signs)
