"""Boxes as answers: the two readers of CoIN and the one of D-MoLE's SK-VG."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import numpy as np

from dmole.benchmarks.rules.rule import Rule
from dmole.metrics.base import Item
from dmole.metrics.boxes import Box, BoxReader, intersection_over_union, read_size

Overlap = Callable[[Item], float | None]
"""Best overlap of an item in 0..1; None where the answer holds no box."""

_POSITIVE_DECIMAL = re.compile(r"[1-9]\d*+\.\d*|0\.\d*[1-9]\d*")
_FIRST_BRACKET = re.compile(r"\[++([^,\n]*+),([^,\n]*+),([^,\n]*+),([^\]\n]*+)\]")
_BRACKET = BoxReader(box_format="unit", parser="bracket")
_NUMBERS = BoxReader(box_format="unit", parser="numbers")
_ANY_UNIT = BoxReader(box_format="auto", parser="bracket")
_PIXELS = BoxReader(box_format="unit", parser="bracket")  # read, but not rescaled


def sliced_box(text: str) -> Box | None:
    """Return the box CoIN reads: without brackets, first and last character, split at commas.

    Example:
        >>> sliced_box("[0.57, 0.58, 0.768, 0.77]")
        (0.57, 0.58, 0.768, 0.7)
        >>> sliced_box("[1.00, 0.58, 0.768, 0.77]")
        (0.0, 0.58, 0.768, 0.7)
    """
    return _four(text.replace("[", "").replace("]", "")[1:-1].split(","))


def decimals_box(text: str) -> Box | None:
    """Return the box CoIN's MiniGPT code reads: the first four positive decimals, unsigned.

    Example:
        >>> decimals_box("[-0.2, 0.1, 0.00, 0.3, 0.4]")
        (0.2, 0.1, 0.3, 0.4)
    """
    found = _POSITIVE_DECIMAL.findall(text)
    return _four(found[:4])


def any_box(text: str) -> Box | None:
    """Return the first four numbers in brackets, else the first four numbers, in 0..1."""
    return _BRACKET.read(text) or _NUMBERS.read(text)


def _four(fields: list[str]) -> Box | None:
    try:
        numbers = [float(field) for field in fields]
    except ValueError:
        return None
    return (numbers[0], numbers[1], numbers[2], numbers[3]) if len(numbers) == 4 else None


def raw_overlap(first: Box, second: Box) -> float:
    """Return the shared area over the joint one, where inverted boxes have negative areas.

    This is what the published evaluators compute; an overlap that is no number is 0.
    """
    width = max(0.0, min(first[2], second[2]) - max(first[0], second[0]))
    height = max(0.0, min(first[3], second[3]) - max(first[1], second[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    joint = areas[0] + areas[1] - width * height
    overlap = width * height / joint if joint else 0.0
    return overlap if math.isfinite(overlap) else 0.0


def _gold(reference: str) -> Box:
    box = _PIXELS.read(reference)
    if box is None:
        raise ValueError(f"reference holds no box: {reference!r}")
    return box


def _size(item: Item, reference: str) -> tuple[float, float] | None:
    """Return width and height of the image: from the metadata, else from the reference's note."""
    size = item.metadata.get("size", (item.metadata.get("width"), item.metadata.get("height")))
    try:
        width, height = (float(side) for side in size)
    except (TypeError, ValueError):
        return read_size(reference)
    return width, height


def _coin(read: Callable[[str], Box | None], scale: bool) -> Overlap:
    def overlap(item: Item) -> float | None:
        box = read(item.text)
        if box is None:
            return None
        best = 0.0
        for reference in item.references:
            size = _size(item, reference) if scale else None
            side = max(size) if size else 1.0  # CoIN's boxes are those of the padded square
            first, second = (_times(each, side, side) for each in (box, _gold(reference)))
            best = max(best, raw_overlap(first, second))
        return best

    return overlap


def _times(box: Box, width: float, height: float) -> Box:
    return box[0] * width, box[1] * height, box[2] * width, box[3] * height


def _coin_corrected(item: Item) -> float | None:
    box = any_box(item.text)
    if box is None:
        return None
    return max(intersection_over_union(box, _gold(reference)) for reference in item.references)


def release_box(text: str) -> Box:
    """Return the box D-MoLE reads in 0..1: of the first bracket; all zero if that fails.

    Numbers whose sum, in single precision, is 4 or more are divided by 1000.

    Example:
        >>> release_box("[[100, 200, 300, 400]]") == release_box("[0.1, 0.2, 0.3, 0.4]")
        True
        >>> release_box("[1, 2, x, 4] [100, 200, 300, 400]")
        (0.0, 0.0, 0.0, 0.0)
    """
    found = _FIRST_BRACKET.search(text)
    box = _four(list(found.groups())) if found else None
    with np.errstate(all="ignore"):  # the numbers are whatever the model wrote
        single = np.array(box or (0.0, 0.0, 0.0, 0.0), dtype=np.float32)
        if single.sum() >= 4:
            single = single / np.float32(1000)
    return (float(single[0]), float(single[1]), float(single[2]), float(single[3]))


def _release(item: Item) -> float | None:
    found = _FIRST_BRACKET.search(item.text)
    if found is None or _four(list(found.groups())) is None:
        return None
    box = release_box(item.text)
    return max(_single_overlap(box, _gold(ref), _known(item, ref)) for ref in item.references)


def _single_overlap(box: Box, gold: Box, size: tuple[float, float]) -> float:
    """Return the overlap of a box in 0..1 and one in pixels, in single precision."""
    with np.errstate(all="ignore"):
        sides = np.array([*size, *size], dtype=np.float32)
        first, second = np.array(box, np.float32) * sides, np.array(gold, np.float32)
        corner = np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2])
        shared = np.prod(np.maximum(corner, np.float32(0)))
        areas = [np.prod(each[2:] - each[:2]) for each in (first, second)]
        overlap = float(shared / (areas[0] + areas[1] - shared))
    return overlap if math.isfinite(overlap) else 0.0


def _release_corrected(item: Item) -> float | None:
    box = _ANY_UNIT.read(item.text)
    if box is None:
        return None
    overlaps = []
    for reference in item.references:
        width, height = _known(item, reference)
        overlaps.append(intersection_over_union(_times(box, width, height), _gold(reference)))
    return max(overlaps)


def _known(item: Item, reference: str) -> tuple[float, float]:
    size = _size(item, reference)
    if size is None:
        raise ValueError(
            "SK-VG needs the size of every image ('width' and 'height', or 'size'): "
            f"none is known where the reference is {reference!r}"
        )
    return size


def _above_half(overlap: Overlap) -> Callable[[Item], float | None]:
    def judge(item: Item) -> float | None:
        found = overlap(item)
        return None if found is None else float(found > 0.5)

    return judge


def _half_or_more(overlap: Overlap) -> Callable[[Item], float | None]:
    def judge(item: Item) -> float | None:
        found = overlap(item)
        return None if found is None else float(found >= 0.5)

    return judge


coin_overlap = _coin(sliced_box, scale=True)
coin_regex_overlap = _coin(decimals_box, scale=False)
release_overlap = _release

_READING = "the first four numbers are read with signs and exponents, in brackets where there are"
_INVERTED = "an inverted box has no area, not a negative or a positive one"

COIN_GROUNDING = Rule(
    published=_above_half(coin_overlap),
    corrected=_above_half(_coin_corrected),
    does="brackets, then the first and the last character of the answer dropped, split at commas; "
    "both boxes times the longer side of the image; overlap above 0.5; unreadable is wrong",
    fixes=(
        "no character is dropped: 1.00 is not read as .00, nor 0.77 as 0.7",
        "words around the box do not make it unreadable",
        _READING,
        _INVERTED,
    ),
    source="CoIN, ETrain/Eval/LLaVA/CoIN/eval_grounding.py",
    needs=("size", "width", "height"),
)

COIN_GROUNDING_REGEX = Rule(
    published=_above_half(coin_regex_overlap),
    corrected=_above_half(_coin_corrected),
    does="the first four decimals of the answer, zeros and signs passed over; overlap above 0.5; "
    "unreadable is wrong",
    fixes=("0.00 is a number", _READING, _INVERTED),
    source="CoIN, ETrain/Eval/MiniGPT/eval_grounding.py",
)

SKVG = Rule(
    published=_half_or_more(release_overlap),
    corrected=_half_or_more(_release_corrected),
    does="the fields of the first square bracket with three commas on one line; divided by 1000 "
    "if they sum to 4 or more; times width and height; overlap of 0.5 or more, in single "
    "precision; unreadable is wrong",
    fixes=(
        "the first bracket of four numbers counts, not the first with three commas",
        "round brackets, line breaks, semicolons, percent signs and box tokens are read",
        "the overlap is taken in double precision",
        _INVERTED,
    ),
    source="D-MoLE, eval/refcoco/evaluate_grounding.py",
    needs=("size", "width", "height"),
)
