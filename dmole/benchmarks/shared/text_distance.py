"""Tolerant comparison of answers: edit distance (ANLS) and numbers within five percent."""

from __future__ import annotations

from rapidfuzz.distance import Levenshtein

from dmole.benchmarks.shared.rule import Rule, any_reference
from dmole.benchmarks.shared.words import BLANK_FIX, same_tidy
from dmole.metrics.base import ScoringItem
from dmole.metrics.readers import read_number

CUT_OFF = 0.5
TOLERANCE = 0.05


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
    return 1.0 - Levenshtein.distance(first, second) / length if length else 0.0


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


def relaxed_corrected(prediction: str, answer: str) -> bool | None:
    """Return the relaxed comparison with signs in numbers allowed and zero as a number.

    Returns:
        None if the accepted answer is a number and the prediction is not.

    Example:
        >>> relaxed_corrected("$1,040", "1000"), relaxed_corrected("0.0", "0")
        (True, True)
        >>> relaxed_corrected("about 100", "100") is None
        True
    """
    gold = read_number(answer)
    if gold is None:
        return same_tidy(prediction, answer)
    predicted = read_number(prediction)
    return None if predicted is None else abs(predicted - gold) <= TOLERANCE * abs(gold)


def _number(text: str) -> float | None:
    """Return the number in a text as in D-MoLE, with 50% as 0.5, or None."""
    percent = text.endswith("%")
    try:
        value = float(text.rstrip("%") if percent else text)
    except ValueError:
        return None
    return value / 100.0 if percent else value


_ANLS_FIXES = (
    "the length is that of the texts that are compared, not of the raw ones: margins and letters "
    "such as ß do not change it",
    BLANK_FIX,
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
        "the words zero to ten are numbers, 'nan', '1_000' and '1,04' are not",
        "margins and a final period of texts are ignored",
        "an answer that is no number, where the gold answer is one, counts as unreadable",
        BLANK_FIX,
    ),
    source="D-MoLE, eval/vqa/evaluate_vqa.py",
)
