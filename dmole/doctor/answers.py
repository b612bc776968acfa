"""Counts answers in memory that does not grow with their number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

_LONGEST = 200  # characters kept of an answer: classes are short, captions differ earlier


class AnswerCounter:
    """Counts how often each answer occurs; rare ones are forgotten when there are too many.

    While no more than ``2 * capacity`` different answers were seen all counts are exact.
    Beyond, a count is too low by at most ``total / capacity``.

    Args:
        capacity: How many answers survive when room is made.

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
        """Count the answer of an item; of several accepted ones the most frequent."""
        answer = answers[0] if len(answers) == 1 else Counter(answers).most_common(1)[0][0]
        self._counts[answer.strip()[:_LONGEST]] += 1
        self.total += 1
        if len(self._counts) > 2 * self._capacity:
            self._make_room()

    def most_common(self, number: int) -> list[tuple[str, int]]:
        """Return the most frequent answers with their counts."""
        return self._counts.most_common(number)

    @property
    def distinct(self) -> int:
        """How many different answers are known, a lower bound unless `exact`."""
        return len(self._counts)

    def _make_room(self) -> None:
        self.exact = False
        counts = sorted(self._counts.values(), reverse=True)
        least = counts[self._capacity]
        self._counts = Counter(
            {answer: n - least for answer, n in self._counts.items() if n > least}
        )
