"""Notices traffic of an unseen task: too many requests that no expert accepts."""

from __future__ import annotations

from collections import deque


class UnseenTaskAlarm:
    """Counts the requests that the router sends to the base model, over a sliding window.

    Args:
        window: Number of requests that the window holds.
        limit: Share of rejected requests above which the alarm is on, in [0, 1].

    Raises:
        ValueError: If the window is empty or the limit is no share.

    Example:
        >>> alarm = UnseenTaskAlarm(window=2, limit=0.6)
        >>> for rejected in (True, False, True, True):
        ...     alarm.count(rejected)
        >>> alarm.share, alarm.is_on
        (1.0, True)
    """

    def __init__(self, window: int = 100, limit: float = 0.5) -> None:
        if window < 1:
            raise ValueError(f"--alarm_window must be at least 1, got {window}")
        if not 0 <= limit <= 1:
            raise ValueError(f"--alarm_share must be in [0, 1], got {limit}")
        self._rejected: deque[bool] = deque(maxlen=window)
        self._limit = limit

    def count(self, rejected: bool) -> None:
        """Add one routed request."""
        self._rejected.append(rejected)

    @property
    def share(self) -> float:
        """Share of rejected requests in the window, 0 before the first one."""
        return sum(self._rejected) / len(self._rejected) if self._rejected else 0.0

    @property
    def is_on(self) -> bool:
        """Whether the window is full and its share is above the limit."""
        return len(self._rejected) == self._rejected.maxlen and self.share > self._limit
