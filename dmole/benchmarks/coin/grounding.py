"""Grounding as scored by CoIN, with the two box parsers of its code."""

from __future__ import annotations

import re
from collections.abc import Callable

from dmole.benchmarks.shared.boxes import (
    INVERTED_FIX,
    Overlap,
    any_box,
    four_numbers,
    gold_box,
    image_size,
    judge_overlap,
    raw_overlap,
    scaled,
)
from dmole.benchmarks.shared.rule import Rule
from dmole.metrics.base import ScoringItem
from dmole.metrics.boxes import Box, intersection_over_union

_POSITIVE_DECIMAL = re.compile(r"[1-9]\d*\.\d*|0\.\d*[1-9]\d*")


def sliced_box(text: str) -> Box | None:
    """Return the box as parsed by CoIN: no brackets, first and last character cut, comma-split.

    Example:
        >>> sliced_box("[0.57, 0.58, 0.768, 0.77]")
        (0.57, 0.58, 0.768, 0.7)
        >>> sliced_box("[1.00, 0.58, 0.768, 0.77]")
        (0.0, 0.58, 0.768, 0.7)
    """
    return four_numbers(text.replace("[", "").replace("]", "")[1:-1].split(","))


def decimals_box(text: str) -> Box | None:
    """Return the box as parsed by CoIN's MiniGPT code: the first four nonzero decimals, unsigned.

    Example:
        >>> decimals_box("[-0.2, 0.1, 0.00, 0.3, 0.4]")
        (0.2, 0.1, 0.3, 0.4)
    """
    return four_numbers(_POSITIVE_DECIMAL.findall(text)[:4])


def _overlap_of(read: Callable[[str], Box | None], scale: bool) -> Overlap:
    def overlap(item: ScoringItem) -> float | None:
        box = read(item.text)
        if box is None:
            return None
        best = 0.0
        for reference in item.references:
            size = image_size(item, reference) if scale else None
            side = max(size) if size else 1.0  # CoIN's boxes refer to the padded square
            first, second = (scaled(each, side, side) for each in (box, gold_box(reference)))
            best = max(best, raw_overlap(first, second))
        return best

    return overlap


def _corrected(item: ScoringItem) -> float | None:
    box = any_box(item.text)
    if box is None:
        return None
    return max(intersection_over_union(box, gold_box(reference)) for reference in item.references)


def _above_half(overlap: float) -> bool:
    return overlap > 0.5


coin_overlap = _overlap_of(sliced_box, scale=True)
coin_regex_overlap = _overlap_of(decimals_box, scale=False)

_READING_FIX = (
    "the first four numbers are read with signs and exponents, in brackets where there are, also "
    "as two corners ('(x1,y1),(x2,y2)'); numbers that sum to 4 or more are not in 0..1 and count "
    "as unreadable"
)

COIN_GROUNDING = Rule(
    published=judge_overlap(coin_overlap, _above_half),
    corrected=judge_overlap(_corrected, _above_half),
    does="brackets, then the first and the last character of the answer dropped, split at commas; "
    "both boxes times the longer side of the image; overlap above 0.5; unreadable is wrong",
    fixes=(
        "no character is dropped: 1.00 is not read as .00, nor 0.77 as 0.7",
        "words around the box do not make it unreadable",
        _READING_FIX,
        INVERTED_FIX,
    ),
    source="CoIN, ETrain/Eval/LLaVA/CoIN/eval_grounding.py",
    needs=("size", "width", "height"),
)

COIN_GROUNDING_REGEX = Rule(
    published=judge_overlap(coin_regex_overlap, _above_half),
    corrected=judge_overlap(_corrected, _above_half),
    does="the first four decimals of the answer, zeros and signs passed over; overlap above 0.5; "
    "unreadable is wrong",
    fixes=("0.00 is a number", _READING_FIX, INVERTED_FIX),
    source="CoIN, ETrain/Eval/MiniGPT/eval_grounding.py",
)
