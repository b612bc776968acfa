"""Tolerant comparison of answers: edit distance (ANLS) and numbers within five percent."""

from __future__ import annotations

import math
import re

from rapidfuzz.distance import Levenshtein

from dmole.benchmarks.shared.rule import Rule, any_reference, tidy
from dmole.metrics.base import ScoringItem

CUT_OFF = 0.5
TOLERANCE = 0.05

_NOT_NUMERIC = re.compile(r"[\s,$€£¥]")


def _plain(text: str) -> str:
    return " ".join(text.strip().lower().split())


def similarity(prediction: str, answer: str) -> float:
    """Return one minus the edit distance over the longer length, in 0..1, as in D-MoLE.

    The distance is measured on normalized texts, the length on the raw texts in upper case.

    Example:
        >>> similarity("fivc bogs", "five dogs") > 0.77, similarity("cat    ", "dog")
        (True, 0.5714285714285714)
    """
    length = max(len(prediction.upper()), len(answer.upper()))
    return (
        1.0 - Levenshtein.distance(_plain(prediction), _plain(answer)) / length if length else 1.0
    )


def similarity_corrected(prediction: str, answer: str) -> float:
    """Return the similarity with distance and length measured on the same texts.

    Example:
        >>> similarity_corrected("cat    ", "dog")
        0.0
    """
    first, second = _plain(prediction), _plain(answer)
    length = max(len(first), len(second))
    return 1.0 - Levenshtein.distance(first, second) / length if length else 1.0


def anls(item: ScoringItem, corrected: bool = False, cut_off: float = CUT_OFF) -> float:
    """Return the best similarity to an accepted answer; 0 below the cut-off.

    Source:
        Biten et al., 2019, https://arxiv.org/abs/1905.13648.
    """
    measure = similarity_corrected if corrected else similarity
    best = max(measure(item.text, answer) for answer in item.references)
    return max(best, 0.0) if best >= cut_off else 0.0


def relaxed(prediction: str, answer: str) -> bool:
    """Return whether two numbers differ by at most 5 % of the second, or two texts are equal.

    Example:
        >>> relaxed("104", "100"), relaxed("0.0", "0")
        (True, False)
    """
    predicted, gold = _number(prediction), _number(answer)
    if predicted is not None and gold:
        return abs(predicted - gold) / abs(gold) <= TOLERANCE
    return prediction.lower() == answer.lower()


def relaxed_corrected(prediction: str, answer: str) -> bool:
    """Return the relaxed comparison with units in numbers allowed and zero as a number.

    Example:
        >>> relaxed_corrected("$1,040", "1000"), relaxed_corrected("0.0", "0")
        (True, True)
    """
    predicted, gold = (_NOT_NUMERIC.sub("", tidy(text)) for text in (prediction, answer))
    if predicted.endswith("%") != gold.endswith("%"):
        predicted, gold = predicted.rstrip("%"), gold.rstrip("%")
    first, second = _number(predicted), _number(gold)
    if first is None or second is None or not (math.isfinite(first) and math.isfinite(second)):
        return tidy(prediction) == tidy(answer)
    return abs(first - second) <= TOLERANCE * abs(second)


def _number(text: str) -> float | None:
    """Return the number in a text, with 50% as 0.5, or None."""
    percent = text.endswith("%")
    try:
        value = float(text.rstrip("%") if percent else text)
    except ValueError:
        return None
    return value / 100.0 if percent else value


_ANLS_FIXES = (
    "the length is that of the texts that are compared, not of the raw ones: margins and letters "
    "such as ß do not change it",
)

ANLS = Rule(
    published=anls,
    corrected=lambda item: anls(item, corrected=True),
    does="best 1 - edit distance / longer length over the accepted answers, 0 below 0.5",
    fixes=_ANLS_FIXES,
    source="D-MoLE, eval/vqa/infographicsvqa_eval.py",
)

ANLS_UNCUT = Rule(
    published=lambda item: anls(item, cut_off=0.0),
    corrected=lambda item: anls(item, corrected=True, cut_off=0.0),
    does="the same without the cut-off at 0.5",
    fixes=_ANLS_FIXES,
    source="Prism, backbone/shared/eval/eval_ucit.py",
)

RELAXED = Rule(
    published=any_reference(relaxed),
    corrected=any_reference(relaxed_corrected),
    does="numbers within 5 % of the gold one (50% is 0.5), other texts equal in lower case",
    fixes=(
        "a gold answer of zero is compared as a number",
        "thousands separators and currency signs are ignored",
        "a percent sign on one side only is ignored",
        "margins and a final period of texts are ignored",
    ),
    source="D-MoLE, eval/vqa/evaluate_vqa.py",
)
