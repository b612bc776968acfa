"""Counts answers in constant memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

_LONGEST = 200  # characters kept of an answer: labels are shorter, captions differ earlier


def most_frequent(answers: Sequence[str]) -> str:
    """Return the most frequent of the accepted answers of an item, the first of several."""
    return answers[0] if len(answers) == 1 else Counter(answers).most_common(1)[0][0]


class AnswerCounter:
    """Counts how often each answer occurs; rare answers are dropped when there are too many.

    Up to ``2 * capacity`` different answers, all counts are exact. Beyond that, a count is too
    low by at most ``total / capacity``.

    Args:
        capacity: Number of answers that remain after others are dropped.

    Source:
        Misra and Gries, 1982; the batched form is that of Agarwal et al., *Mergeable Summaries*,
        2012.
    """

    def __init__(self, capacity: int = 5000) -> None:
        self._capacity = capacity
        self._counts: Counter[str] = Counter()
        self.total = 0
        self.exact = True

    def add(self, answers: Sequence[str]) -> None:
        """Count the answer of an item; if it has several, the most frequent one."""
        self._counts[most_frequent(answers).strip()[:_LONGEST]] += 1
        self.total += 1
        if len(self._counts) > 2 * self._capacity:
            self._drop_rare()

    def most_common(self, number: int) -> list[tuple[str, int]]:
        """Return the most frequent answers with their counts."""
        return self._counts.most_common(number)

    @property
    def distinct(self) -> int:
        """Number of different answers counted, a lower bound unless `exact`."""
        return len(self._counts)

    def _drop_rare(self) -> None:
        self.exact = False
        counts = sorted(self._counts.values(), reverse=True)
        least = counts[self._capacity]
        self._counts = Counter(
            {answer: n - least for answer, n in self._counts.items() if n > least}
        )
