"""Rejected samples among the last ones: the sign of a task that no expert has learned.

The standard library alone, so that the command line imports it fast.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True)
class Alarm:
    """The share of rejected samples has passed the limit.

    Args:
        rejected: Rejected samples in the window.
        window: Length of the window.
        length: Number of samples, up to the one that raised the alarm, among which the rejections
            exceed the limit most. The first of them is rejected and probably begins the new task.
    """

    rejected: int
    window: int
    length: int

    @property
    def share(self) -> float:
        """Share of rejected samples in the window."""
        return self.rejected / self.window


class RejectionWindow:
    r"""Counts rejected samples in order of arrival and raises an alarm where they become many.

    .. math:: \frac1w \sum_{j = i - w + 1}^{i} r_j > \lambda

    with :math:`r_j = 1` for a rejected sample and 0 before the first one. There is one alarm for
    each passage of the limit: the next one follows only after the share has fallen to half the
    limit.

    Args:
        window: Number of samples :math:`w`, at least 2.
        limit: Share :math:`\lambda` that the rejections must exceed, below 1 and at least
            1 / window, so that no single sample raises an alarm.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> watched = RejectionWindow(window=4, limit=0.5)
        >>> [watched.add(rejected) is not None for rejected in (True, False, True, True, True)]
        [False, False, False, True, False]
    """

    def __init__(self, window: int = 32, limit: float = 0.5) -> None:
        if window < 2:
            raise ValueError(f"window must be at least 2, got {window}")
        if not 1 / window <= limit < 1:
            raise ValueError(f"limit must be at least 1 / window and below 1, got {limit}")
        self.window = window
        self.limit = limit
        self._last: deque[bool] = deque(maxlen=window)
        self._raised = False

    @property
    def rejected(self) -> int:
        """Rejected samples in the window."""
        return sum(self._last)

    @property
    def share(self) -> float:
        """Share of rejected samples in the window."""
        return self.rejected / self.window

    def add(self, rejected: bool) -> Alarm | None:
        """Return an alarm if this sample raises one.

        Args:
            rejected: Whether no expert accepts the next sample.
        """
        self._last.append(rejected)
        if self._raised:
            self._raised = self.share > self.limit / 2
            return None
        if self.share <= self.limit:
            return None
        self._raised = True
        return Alarm(self.rejected, self.window, self._excess())

    def clear(self) -> None:
        """Forget all samples."""
        self._last.clear()
        self._raised = False

    def _excess(self) -> int:
        """Return how many of the last samples have the largest excess of rejections."""
        excess = best = 0.0
        length = 0
        for count, rejected in enumerate(reversed(self._last), start=1):
            excess += rejected - self.limit
            if excess > best:
                best, length = excess, count
        return length
