"""Answers that are words: helpers for the rules of several benchmarks."""

from __future__ import annotations

from dmole.benchmarks.shared.rule import Rule, tidy
from dmole.metrics.base import ScoringItem
from dmole.metrics.vqa import normalize_answer, soft_accuracy

REFUSAL = "Unanswerable"
"""The answer that some evaluators count as wrong wherever it occurs."""


BLANK_FIX = "a blank answer is never right and counts as unreadable"
"""Treatment of blank answers in the corrected profiles."""


def same_upper(prediction: str, answer: str) -> bool:
    """Return whether both are equal in upper case, untrimmed.

    Example:
        >>> same_upper("No", "no"), same_upper("no ", "no")
        (True, False)
    """
    return prediction.upper() == answer.upper()


def same_tidy(prediction: str, answer: str) -> bool:
    """Return whether both are equal after `tidy`: ignoring case, extra spaces, final periods.

    A blank text equals nothing, and periods equal periods only.

    Example:
        >>> same_tidy(" No. ", "no"), same_tidy("", ""), same_tidy(".", ""), same_tidy(".", " . ")
        (True, False, False, True)
    """
    first, second = tidy(prediction), tidy(answer)
    if not first or not second:
        return prediction.strip() == answer.strip() != ""
    return first == second


def _soft(item: ScoringItem) -> float:
    return soft_accuracy(item.text, item.references)


def _soft_corrected(item: ScoringItem) -> float | None:
    if not normalize_answer(item.text, "corrected"):
        return None
    return soft_accuracy(item.text, item.references, profile="corrected")


def soft_rule(source: str) -> Rule:
    """Return the rule of soft accuracy over ten human answers, with its source file."""
    return Rule(
        published=_soft,
        corrected=_soft_corrected,
        does="soft accuracy over ten human answers after the EvalAI normalizer (k equal answers "
        "give 0, .3, .6, .9, 1)",
        fixes=(
            "a period is removed unless digits stand on both sides, not only after it",
            "all such periods are removed, not only the first 32",
            "an answer of articles alone ('A') is kept, so that it does not equal an empty one",
            '"somebody\'d" keeps its apostrophe like the other contractions',
            "an answer of which the normalizer leaves nothing is never right and counts as "
            "unreadable",
        ),
        source=source,
    )
