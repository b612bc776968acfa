"""Finds the shape of a file from its first items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dmole.data.shapes.shape import Shape

SHAPES: dict[str, Shape] = {}
"""Every shape by its name."""


def recognise(items: Sequence[Mapping[str, Any]]) -> Shape:
    """Return the one shape that all items have.

    Args:
        items: The first items of a file.

    Raises:
        ValueError: If there are no items, an item has no shape or more than one, or two items
            differ in shape. The message is one line that names positions and shapes.
    """
    raise ValueError("no shape is recognised yet")
