"""Image of a graph: nodes as colored shapes on a circle, edges as lines between them."""

from __future__ import annotations

import functools
import math
import random

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dmole.demo.world.graphs import Graph
from dmole.demo.world.masks import shape_mask
from dmole.demo.world.world import (
    CELL,
    COLOR_NAMES,
    LATTICE,
    SHAPES,
    SIZE,
    Canvas,
    Mask,
    Pixels,
    Thing,
)

NODE_CELLS = 4
"""Side of a node in cells: shapes of 16 pixels, a size in the tiny model's pretraining."""
LINE_COLOR = (120, 120, 120)
_SCALE = 8
_RADIUS = LATTICE / 2 - NODE_CELLS / 2


def render(rng: random.Random, graph: Graph) -> Pixels:
    """Return the image of a graph; a node without a shape is drawn as a question mark.

    Args:
        rng: Source of the background, the tints and the rotation of the circle.
        graph: At most seven nodes; they are drawn clockwise in order.

    Returns:
        Array of shape ``(64, 64, 3)``, dtype uint8.
    """
    canvas = Canvas(rng, dark=False)
    things = place_nodes(rng, graph)
    lines = Thing(-1, -1, 0, 0, LATTICE, LATTICE)
    canvas.paste(_line_mask(graph, things), lines, np.array(LINE_COLOR, np.float32))
    for node in graph.nodes:
        thing = things[node.name]
        side = thing.width * CELL
        mask = question_mask(side) if node.shape is None else shape_mask(thing.label, side)
        canvas.paste(mask, thing, canvas.thing_tint(thing.color))
    return canvas.image()


def place_nodes(rng: random.Random, graph: Graph) -> dict[str, Thing]:
    """Return the thing of each node: clockwise in order, from a random direction.

    On a circle no edge crosses a third node.
    """
    start = rng.random() * 2 * math.pi
    things = {}
    for index, node in enumerate(graph.nodes):
        angle = start + 2 * math.pi * index / len(graph.nodes)
        left, top = (
            round(LATTICE / 2 + _RADIUS * turn - NODE_CELLS / 2)
            for turn in (math.sin(angle), -math.cos(angle))
        )
        label = SHAPES.index(node.shape) if node.shape else -1
        color = COLOR_NAMES.index(node.name)
        things[node.name] = Thing(label, color, left, top, NODE_CELLS, NODE_CELLS)
    return things


def _line_mask(graph: Graph, things: dict[str, Thing]) -> Mask:
    image = Image.new("L", (SIZE * _SCALE, SIZE * _SCALE), 0)
    draw = ImageDraw.Draw(image)
    for edge in graph.edges:
        ends = [
            # shifted by half a pixel, else a straight line covers half of two rows of pixels
            ((column * CELL + 0.5) * _SCALE, (row * CELL + 0.5) * _SCALE)
            for column, row in (things[name].center for name in edge)
        ]
        draw.line(ends, fill=255, width=_SCALE)
    return _shrink(image, SIZE)


@functools.cache
def question_mask(size: int) -> Mask:
    """Return the coverage in [0, 1] of a question mark, of shape ``(size, size)``."""
    image = Image.new("L", (size * _SCALE, size * _SCALE), 0)
    middle = (size * _SCALE // 2, size * _SCALE // 2)
    font = ImageFont.load_default(size * _SCALE)
    ImageDraw.Draw(image).text(middle, "?", fill=255, font=font, anchor="mm", stroke_width=_SCALE)
    return _shrink(image, size)


def _shrink(image: Image.Image, size: int) -> Mask:
    """Return the share of each pixel that a drawing covers."""
    small = np.asarray(image.resize((size, size), Image.Resampling.BOX), np.float32)
    covered: Mask = small / np.float32(255)
    return covered
