"""A published scoring rule: two judges of one answer and the differences between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from dmole.benchmarks.shared.forms import AnswerForm
from dmole.metrics.base import ScoringItem

Judge = Callable[[ScoringItem], float | None]
"""Score of an item in 0..1; None, which counts as 0, if the answer cannot be parsed."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """The scoring rule of a benchmark for one kind of task.

    Args:
        published: The rule of the authors' evaluator, including its quirks.
        corrected: The same rule without the quirks.
        does: Short description of the published rule.
        fixes: Differences of the corrected profile, one line per quirk.
        source: Repository and file of the authors' evaluator.
        missing: Treatment of samples without an answer in the published profile: counted as
            wrong or skipped. The corrected profile always counts them as wrong.
        pairing: Whether the authors pair answers and references by id or by position in the
            file. The corrected profile always pairs by id.
        needs: Keys of the metadata that the rule reads if a sample has them.
        form: The form that the questions ask answers to have; None if they ask for none.
    """

    published: Judge
    corrected: Judge
    does: str
    fixes: tuple[str, ...]
    source: str
    missing: Literal["wrong", "skipped"] = "skipped"
    pairing: Literal["id", "position"] = "id"
    needs: tuple[str, ...] = ()
    form: AnswerForm | None = None


def any_reference(judge: Callable[[str, str], bool | float | None]) -> Judge:
    """Return a judge of items from a judge of (prediction, reference) pairs; the best counts."""

    def best(item: ScoringItem) -> float | None:
        judged = [judge(item.text, reference) for reference in item.references]
        scores = [float(score) for score in judged if score is not None]
        return max(scores) if scores else None

    return best


def has_words(text: str, words: str) -> bool:
    """Return whether words occur in a text as whole words; both must be lower case.

    Example:
        >>> has_words("it is normal", "no"), has_words("no, it is not", "no")
        (False, True)
    """
    start = text.find(words) if words else -1
    while start >= 0:
        end = start + len(words)
        before = _joined(text[max(start - 2, 0) : start][::-1], words[0])
        if not (before or _joined(text[end : end + 2], words[-1])):
            return True
        start = text.find(words, start + 1)
    return False


def _joined(outside: str, edge: str) -> bool:
    """Return whether a word continues beyond its edge: in letters, or over a decimal point.

    Args:
        outside: Up to two characters next to the word, the nearer one first.
        edge: The first or last character of the word, on that side.
    """
    if not outside:
        return False
    if edge.isdigit() and outside[0] in ".," and outside[1:].isdigit():
        return True
    return edge.isalnum() and outside[0].isalnum()


def tidy(text: str) -> str:
    """Return a text in lower case with single spaces and without final periods.

    Example:
        >>> tidy(" The  Cat. ")
        'the cat'
    """
    return " ".join(text.lower().split()).rstrip(". ")
