"""Procedural 64x64 scenes of shapes or of text on a 16x16 lattice; no questions, no tensors."""

from __future__ import annotations

import functools
import math
import random
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

SIZE = 64
CELL = 4
LATTICE = SIZE // CELL
COLORS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (230, 205, 30),
    "purple": (150, 50, 190),
    "orange": (240, 130, 20),
    "black": (20, 20, 20),
    "pink": (250, 140, 190),
    "white": (245, 245, 245),
}
COLOR_NAMES = tuple(COLORS)
SHAPES = ("circle", "square", "triangle", "star", "cross")
DIGITS = tuple("0123456789")
LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
CLASSES = SHAPES + DIGITS + LETTERS
"""Classes of things; the index in this tuple is the label of a `Thing`."""
FIRST_DIGIT, FIRST_LETTER = len(SHAPES), len(SHAPES) + len(DIGITS)

LIGHT_GROUNDS = ((255, 255, 255), (235, 235, 235), (215, 225, 240), (245, 238, 220))
DARK_GROUNDS = ((20, 20, 28), (45, 32, 32), (24, 42, 36), (36, 32, 58))
LIGHT_COLORS = tuple(i for i, name in enumerate(COLOR_NAMES) if name != "white")
DARK_COLORS = tuple(i for i, name in enumerate(COLOR_NAMES) if name != "black")

SHAPE_SIZES = (12, 16, 20)
GLYPH_WIDTHS = {16: 12, 24: 16, 32: 24}
NUMBER_HEIGHTS = (16, 24)
DARK_SHARE, OFFSET_SHARE = 0.2, 0.25
COLOR_JITTER, GROUND_JITTER = 14, 10

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.float32]
TextKind = Literal["digit", "letter", "number"]


@dataclass(frozen=True)
class Thing:
    """A shape or a piece of text on the lattice.

    Args:
        label: Index into `CLASSES`; -1 for a text of several glyphs.
        color: Index into `COLOR_NAMES`.
        left: First column of the lattice, in cells.
        top: First row of the lattice, in cells.
        width: Columns covered.
        height: Rows covered.
        fill: A name of `dmole.demo.world.scenes.FILLS`.
    """

    label: int
    color: int
    left: int
    top: int
    width: int
    height: int
    fill: str = "solid"

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom edge in cells, 0 to 16."""
        return self.left, self.top, self.left + self.width, self.top + self.height

    @property
    def center(self) -> tuple[float, float]:
        """Column and row of the center, in cells."""
        return self.left + self.width / 2, self.top + self.height / 2

    @property
    def name(self) -> str:
        """Color and class, such as ``red star``."""
        return f"{COLOR_NAMES[self.color]} {CLASSES[self.label]}"


@dataclass(frozen=True)
class Scene:
    """An image and the things on it.

    Args:
        pixels: Array of shape ``(64, 64, 3)``, dtype uint8.
        things: The shapes, or the glyphs of a text from left to right.
        text: The characters of a text; empty for a scene of shapes.
        text_kind: ``digit``, ``letter`` or ``number``; None for a scene of shapes.
    """

    pixels: Pixels
    things: tuple[Thing, ...]
    text: str = ""
    text_kind: TextKind | None = None

    @property
    def text_thing(self) -> Thing:
        """One thing that covers all glyphs of a text."""
        first = self.things[0]
        width = sum(glyph.width for glyph in self.things)
        return Thing(-1, first.color, first.left, first.top, width, first.height)


@functools.cache
def shape_mask(label: int, size: int) -> Mask:
    """Return the coverage in [0, 1] of a filled shape, of shape ``(size, size)``."""
    scale = 8
    side = size * scale
    image = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(image)
    middle, radius = side / 2, side / 2 - scale * 0.5
    low, high = middle - radius, middle + radius
    name = SHAPES[label]
    if name == "circle":
        draw.ellipse([low, low, high, high], fill=255)
    elif name == "square":
        draw.rectangle([low, low, high, high], fill=255)
    elif name == "triangle":
        draw.polygon([(middle, low), (low, high), (high, high)], fill=255)
    elif name == "cross":
        arm = radius * 0.36
        draw.rectangle([low, middle - arm, high, middle + arm], fill=255)
        draw.rectangle([middle - arm, low, middle + arm, high], fill=255)
    else:
        points = []
        for corner in range(10):
            reach = radius if corner % 2 == 0 else radius * 0.42
            angle = -math.pi / 2 + corner * math.pi / 5
            points.append((middle + reach * math.cos(angle), middle + reach * math.sin(angle)))
        draw.polygon(points, fill=255)
    return _coverage(image, size, size)


@functools.cache
def glyph_mask(label: int, height: int) -> Mask:
    """Return the coverage in [0, 1] of a digit or letter, of shape ``(height, width)``."""
    scale, width = 4, GLYPH_WIDTHS[height]
    image = Image.new("L", (height * scale * 2, height * scale * 2), 0)
    ImageDraw.Draw(image).text(
        (height * scale // 2, height * scale // 3),
        CLASSES[label],
        fill=255,
        font=ImageFont.load_default(height * scale),
        stroke_width=2,
    )
    image = image.crop(image.getbbox())
    tall = (height - 2) * scale
    wide = max(1, min(int(image.width * tall / image.height), (width - 1) * scale))
    glyph = image.resize((wide, tall), Image.Resampling.BILINEAR)
    canvas = Image.new("L", (width * scale, height * scale), 0)
    canvas.paste(glyph, ((width * scale - wide) // 2, (height * scale - tall) // 2))
    return _coverage(canvas, width, height)


def _coverage(image: Image.Image, width: int, height: int) -> Mask:
    """Return the share of each pixel that a drawing covers."""
    small = np.asarray(image.resize((width, height), Image.Resampling.BOX), np.float32)
    covered: Mask = small / np.float32(255)
    return covered


class Canvas:
    """A background for things; draws its tint, palette and offset from `rng`.

    Args:
        rng: Source of randomness.
        dark: Whether the background is dark; by default in one of five scenes.
        noise: Maximum change of a pixel's channels, in levels of 0 to 255.
    """

    def __init__(self, rng: random.Random, *, dark: bool | None = None, noise: int = 0) -> None:
        self.rng = rng
        self.dark = rng.random() < DARK_SHARE if dark is None else dark
        ground = rng.choice(DARK_GROUNDS if self.dark else LIGHT_GROUNDS)
        self.palette = DARK_COLORS if self.dark else LIGHT_COLORS
        # one offset for all things of a scene: they never overlap, and an edge moved by one of four
        # pixels still rounds to its lattice edge, so labels stay exact
        moved = rng.random() < OFFSET_SHARE
        self.offset = (rng.randint(-1, 1), rng.randint(-1, 1)) if moved else (0, 0)
        self.pixels = np.empty((SIZE, SIZE, 3), np.float32)
        self.pixels[:] = self.tint(ground, GROUND_JITTER)
        if noise:
            speckle = np.random.default_rng(rng.getrandbits(32))
            self.pixels += speckle.integers(-noise, noise + 1, self.pixels.shape)
            np.clip(self.pixels, 0, 255, out=self.pixels)

    def tint(self, color: tuple[int, int, int], jitter: int) -> npt.NDArray[np.float32]:
        """Return the color with each channel moved by up to `jitter`."""
        moved = [channel + self.rng.randint(-jitter, jitter) for channel in color]
        return np.clip(np.array(moved, np.float32), 0, 255)

    def paste(self, mask: Mask, thing: Thing, color: npt.NDArray[np.float32]) -> None:
        """Blend `color` into the cells of `thing` where the mask covers them."""
        left = min(max(thing.left * CELL + self.offset[0], 0), SIZE - mask.shape[1])
        top = min(max(thing.top * CELL + self.offset[1], 0), SIZE - mask.shape[0])
        view = self.pixels[top : top + mask.shape[0], left : left + mask.shape[1]]
        view += mask[..., None] * (color - view)

    def thing_tint(self, color: int) -> npt.NDArray[np.float32]:
        """Return a jittered tint of a color of `COLOR_NAMES`."""
        return self.tint(COLORS[COLOR_NAMES[color]], COLOR_JITTER)

    def image(self) -> Pixels:
        """Return the current image."""
        return self.pixels.astype(np.uint8)
