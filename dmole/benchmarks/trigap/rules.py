"""The rule of TriGap's two document tasks: edit distance without a cut-off."""

from __future__ import annotations

from rapidfuzz.distance import Levenshtein

from dmole.benchmarks.shared.rule import Rule, any_reference
from dmole.benchmarks.shared.text_distance import similarity_corrected
from dmole.benchmarks.shared.words import BLANK_FIX


def similarity(prediction: str, answer: str) -> float:
    """Return one minus the edit distance over the longer length, in 0..1, as in Prism.

    Both are trimmed and compared in lower case. Two blank texts are equal, and a blank text has
    nothing in common with another one.

    Example:
        >>> similarity(" Cats", "dogs"), similarity("", "dogs"), similarity("", " ")
        (0.25, 0.0, 1.0)
    """
    first, second = prediction.strip(), answer.strip()
    if not first or not second:
        return float(first == second)
    distance = Levenshtein.distance(first.lower(), second.lower())
    return max(0.0, 1.0 - distance / max(len(first), len(second)))


TRIGAP_ANLS = Rule(
    published=any_reference(similarity),
    corrected=any_reference(similarity_corrected),
    does="best 1 - edit distance / longer length over the accepted answers, trimmed and in lower "
    "case; no cut-off at 0.5; questions without an answer are not counted",
    fixes=("white space within a text counts as one space", BLANK_FIX),
    source="Prism, backbone/shared/eval/eval_ucit.py",
)
