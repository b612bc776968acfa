"""Procedural 64x64 scenes of shapes or of text on a 16x16 lattice; no questions, no tensors.

The colors, shapes and shifts of the wide world (`dmole.demo.world.wide`) are additions: labels and
pictures of the tiny model's world do not depend on them.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

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
MORE_COLORS = {"brown": (130, 80, 40), "gray": (130, 130, 130), "cyan": (40, 200, 210)}
ALL_COLORS = COLORS | MORE_COLORS
COLOR_NAMES = tuple(COLORS)
ALL_COLOR_NAMES = tuple(ALL_COLORS)
"""Names of all colors; the index in this tuple is the color of a `Thing`."""
SHAPES = ("circle", "square", "triangle", "star", "cross")
DIGITS = tuple("0123456789")
LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
CLASSES = SHAPES + DIGITS + LETTERS
MORE_SHAPES = ("diamond", "heart", "moon")
ALL_CLASSES = CLASSES + MORE_SHAPES
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
CONTRAST = 150
"""Least distance of a color from a given ground: sum over the channels of the differences."""
COLOR_JITTER, GROUND_JITTER = 14, 10

Color = tuple[int, int, int]
Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.float32]
TextKind = Literal["digit", "letter", "number", "pair"]


@dataclass(frozen=True)
class Thing:
    """A shape or a piece of text on the lattice.

    Args:
        label: Index into `ALL_CLASSES`; -1 for a text of several glyphs.
        color: Index into `ALL_COLOR_NAMES`.
        left: First column of the lattice, in cells.
        top: First row of the lattice, in cells.
        width: Columns covered.
        height: Rows covered.
        fill: A name of `dmole.demo.world.scenes.FILLS`.
        shift: Displacement from the lattice to the right and down, in pixels, -2 to 1: edges still
            round to those of the lattice.
    """

    label: int
    color: int
    left: int
    top: int
    width: int
    height: int
    fill: str = "solid"
    shift: tuple[int, int] = (0, 0)

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom edge in cells, 0 to 16."""
        return self.left, self.top, self.left + self.width, self.top + self.height

    @property
    def drawn_box(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom edge with the shift, in fractions of cells."""
        across, down = (pixels / CELL for pixels in self.shift)
        left, top, right, bottom = self.box
        return left + across, top + down, right + across, bottom + down

    @property
    def center(self) -> tuple[float, float]:
        """Column and row of the center, in cells."""
        return self.left + self.width / 2, self.top + self.height / 2

    @property
    def name(self) -> str:
        """Color and class, such as ``red star``."""
        return f"{self.color_name} {self.class_name}"

    @property
    def color_name(self) -> str:
        """Name of the color, such as ``red``."""
        return ALL_COLOR_NAMES[self.color]

    @property
    def class_name(self) -> str:
        """Name of the class, such as ``star``."""
        return ALL_CLASSES[self.label]


@dataclass(frozen=True)
class Scene:
    """An image and the things on it.

    Args:
        pixels: Array of shape ``(64, 64, 3)``, dtype uint8.
        things: The shapes, or the glyphs of a text from left to right.
        text: The characters of a text; empty for a scene of shapes.
        text_kind: ``digit``, ``letter``, ``number`` or ``pair``, which is of letters; None for a
            scene of shapes.
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


def contrasting_colors(ground: Color) -> tuple[int, ...]:
    """Return the colors at a distance of at least `CONTRAST` from a ground, as indices."""
    return tuple(
        index
        for index, color in enumerate(ALL_COLORS.values())
        if sum(abs(one - other) for one, other in zip(color, ground, strict=True)) >= CONTRAST
    )


class Canvas:
    """A background for things; draws its tint, palette and offset from `rng`.

    Args:
        rng: Source of randomness.
        dark: Whether the background is dark; by default in one of five scenes.
        noise: Maximum change of a pixel's channels, in levels of 0 to 255.
        ground: Color of the background, in place of a light or dark one. All colors that contrast
            with it are the palette, and there is no offset: things have a `Thing.shift`.
    """

    def __init__(
        self,
        rng: random.Random,
        *,
        dark: bool | None = None,
        noise: int = 0,
        ground: Color | None = None,
    ) -> None:
        self.rng = rng
        moved = False
        if ground is None:
            is_dark = rng.random() < DARK_SHARE if dark is None else dark
            ground = rng.choice(DARK_GROUNDS if is_dark else LIGHT_GROUNDS)
            self.palette = DARK_COLORS if is_dark else LIGHT_COLORS
            # one offset for all things of a scene: they never overlap, and an edge moved by one of
            # four pixels still rounds to its lattice edge, so labels stay exact
            moved = rng.random() < OFFSET_SHARE
        else:
            self.palette = contrasting_colors(ground)
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
        left, top = (
            min(max(cell * CELL + offset + shift, 0), SIZE - side)
            for cell, offset, shift, side in zip(
                (thing.left, thing.top), self.offset, thing.shift, mask.shape[::-1], strict=True
            )
        )
        view = self.pixels[top : top + mask.shape[0], left : left + mask.shape[1]]
        view += mask[..., None] * (color - view)

    def thing_tint(self, color: int) -> npt.NDArray[np.float32]:
        """Return a jittered tint of a color of `ALL_COLOR_NAMES`."""
        return self.tint(ALL_COLORS[ALL_COLOR_NAMES[color]], COLOR_JITTER)

    def image(self) -> Pixels:
        """Return the current image."""
        return self.pixels.astype(np.uint8)
