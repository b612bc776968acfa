"""Boxes as answers: helpers for the rules of several benchmarks."""

from __future__ import annotations

import math
from collections.abc import Callable

from dmole.benchmarks.shared.rule import Judge
from dmole.metrics.base import ScoringItem
from dmole.metrics.boxes import Box, BoxReader, has_area, read_size

Overlap = Callable[[ScoringItem], float | None]
"""Best overlap of an item in 0..1; None if the answer holds no box."""

_BRACKET = BoxReader(box_format="unit", parser="bracket")
_NUMBERS = BoxReader(box_format="unit", parser="numbers")
_PIXELS = BoxReader(box_format="unit", parser="bracket")  # read, but not rescaled

INVERTED_FIX = (
    "an inverted box has no area, not a negative or a positive one, and counts as unreadable"
)
"""Treatment of inverted boxes in the corrected profiles."""


def any_box(text: str) -> Box | None:
    """Return the first box in brackets, else the first four numbers, in 0..1.

    Returns:
        None if there is no box, or it has no area, or its numbers sum to 4 or more and are
        therefore not in 0..1.
    """
    box = _BRACKET.read(text) or _NUMBERS.read(text)
    return box if box is not None and has_area(box) and sum(box) < 4.0 else None


def four_numbers(fields: list[str]) -> Box | None:
    """Return the box given by four fields; None if they are not four numbers."""
    try:
        numbers = [float(field) for field in fields]
    except ValueError:
        return None
    return (numbers[0], numbers[1], numbers[2], numbers[3]) if len(numbers) == 4 else None


def raw_overlap(first: Box, second: Box) -> float:
    """Return the intersection over the union, where inverted boxes have negative areas.

    The published evaluators compute it this way. An overlap that is not finite is 0.
    """
    width = max(0.0, min(first[2], second[2]) - max(first[0], second[0]))
    height = max(0.0, min(first[3], second[3]) - max(first[1], second[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    joint = areas[0] + areas[1] - width * height
    overlap = width * height / joint if joint else 0.0
    return overlap if math.isfinite(overlap) else 0.0


def gold_box(reference: str) -> Box:
    """Return the box of a reference in its original unit.

    Raises:
        ValueError: If the reference holds no box.
    """
    box = _PIXELS.read(reference)
    if box is None:
        raise ValueError(f"reference holds no box: {reference!r}")
    return box


def image_size(item: ScoringItem, reference: str) -> tuple[float, float] | None:
    """Return width and height of the image from the metadata, else from the reference.

    Raises:
        ValueError: If the metadata have a size that is not two positive numbers.
    """
    size = item.metadata.get("size", (item.metadata.get("width"), item.metadata.get("height")))
    try:
        width, height = (float(side) for side in size)
    except (TypeError, ValueError):
        return read_size(reference)
    if not (0.0 < width < math.inf and 0.0 < height < math.inf):
        raise ValueError(f"the size of an image must be two positive numbers, got {size!r}")
    return width, height


def scaled(box: Box, width: float, height: float) -> Box:
    """Return a box multiplied by a width and a height."""
    return box[0] * width, box[1] * height, box[2] * width, box[3] * height


def judge_overlap(overlap: Overlap, accepts: Callable[[float], bool]) -> Judge:
    """Return a judge that scores items by their overlap.

    Args:
        overlap: Returns the overlap of an item.
        accepts: Returns whether an overlap is sufficient.
    """

    def judge(item: ScoringItem) -> float | None:
        value = overlap(item)
        return None if value is None else float(accepts(value))

    return judge
