"""SK-VG as scored by D-MoLE: predicted boxes in thousandths, reference boxes in pixels."""

from __future__ import annotations

import math
import re

import numpy as np

from dmole.benchmarks.shared.boxes import (
    INVERTED_FIX,
    four_numbers,
    gold_box,
    image_size,
    judge_overlap,
    scaled,
)
from dmole.benchmarks.shared.rule import Rule
from dmole.metrics.base import ScoringItem
from dmole.metrics.boxes import Box, BoxReader, in_image, intersection_over_union

# the lookarounds keep it from trying each bracket of a long run
_FIRST_BRACKET = re.compile(r"(?<!\[)\[+(?!\[)([^,\n]*),([^,\n]*),([^,\n]*),([^\]\n]*)\]")
_ANY_UNIT = BoxReader(box_format="auto", parser="bracket")


def release_box(text: str) -> Box:
    """Return the box as parsed by D-MoLE, in 0..1: the first bracket; all zero if that fails.

    If the numbers sum to 4 or more in single precision, they are divided by 1000.

    Example:
        >>> release_box("[[100, 200, 300, 400]]") == release_box("[0.1, 0.2, 0.3, 0.4]")
        True
        >>> release_box("[1, 2, x, 4] [100, 200, 300, 400]")
        (0.0, 0.0, 0.0, 0.0)
    """
    match = _FIRST_BRACKET.search(text)
    box = four_numbers(list(match.groups())) if match else None
    with np.errstate(all="ignore"):  # the model may have written any numbers
        single = np.array(box or (0.0, 0.0, 0.0, 0.0), dtype=np.float32)
        if single.sum() >= 4:
            single = single / np.float32(1000)
    return (float(single[0]), float(single[1]), float(single[2]), float(single[3]))


def release_overlap(item: ScoringItem) -> float | None:
    """Return the best overlap as computed by D-MoLE; None if it parses no box."""
    match = _FIRST_BRACKET.search(item.text)
    if match is None or four_numbers(list(match.groups())) is None:
        return None
    box = release_box(item.text)
    return max(
        _single_overlap(box, gold_box(ref), _required_size(item, ref)) for ref in item.references
    )


def _single_overlap(box: Box, gold: Box, size: tuple[float, float]) -> float:
    """Return the overlap of a box in 0..1 and a box in pixels, in single precision."""
    with np.errstate(all="ignore"):
        sides = np.array([*size, *size], dtype=np.float32)
        first, second = np.array(box, np.float32) * sides, np.array(gold, np.float32)
        corner = np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2])
        shared = np.prod(np.maximum(corner, np.float32(0)))
        areas = [np.prod(each[2:] - each[:2]) for each in (first, second)]
        overlap = float(shared / (areas[0] + areas[1] - shared))
    return overlap if math.isfinite(overlap) else 0.0


def _corrected(item: ScoringItem) -> float | None:
    box = _ANY_UNIT.read(item.text)
    if box is None or not in_image(box):
        return None
    overlaps = []
    for reference in item.references:
        width, height = _required_size(item, reference)
        overlaps.append(intersection_over_union(scaled(box, width, height), gold_box(reference)))
    return max(overlaps)


def _required_size(item: ScoringItem, reference: str) -> tuple[float, float]:
    size = image_size(item, reference)
    if size is None:
        raise ValueError(
            "SK-VG needs the size of every image ('width' and 'height', or 'size'): "
            f"none is known where the reference is {reference!r}"
        )
    return size


def _half_or_more(overlap: float) -> bool:
    return overlap >= 0.5


SKVG = Rule(
    published=judge_overlap(release_overlap, _half_or_more),
    corrected=judge_overlap(_corrected, _half_or_more),
    does="the fields of the first square bracket with three commas on one line; divided by 1000 "
    "if they sum to 4 or more; times width and height; overlap of 0.5 or more, in single "
    "precision; unreadable is wrong",
    fixes=(
        "the first bracket of four numbers counts, not the first with three commas",
        "round brackets, two corners ('(x1,y1),(x2,y2)'), line breaks, semicolons, percent signs "
        "and box tokens are read",
        "a box outside the image counts as unreadable",
        "the overlap is taken in double precision",
        INVERTED_FIX,
    ),
    source="D-MoLE, eval/refcoco/evaluate_grounding.py",
    needs=("size", "width", "height"),
)
