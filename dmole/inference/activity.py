"""How often each expert answered lately."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence

BASE = "base"
"""Stands for the base model alone in counts."""


class ActivityWindow:
    """Counts the experts of the last requests.

    Args:
        size: Number of requests that are remembered.

    Raises:
        ValueError: If the size is below 1.

    Example:
        >>> window = ActivityWindow(size=3)
        >>> for experts in (("count",), ("count", "paint"), (), ("paint",)):
        ...     window.record(experts)
        >>> window.counts()
        {'count': 1, 'paint': 2, 'base': 1}
        >>> round(window.share("paint"), 2)
        0.67
    """

    def __init__(self, size: int = 1000) -> None:
        if size < 1:
            raise ValueError(f"the window must hold at least 1 request, got {size}")
        self.size = size
        self._requests: deque[tuple[str, ...]] = deque()
        self._counts: Counter[str] = Counter()

    def __len__(self) -> int:
        """Return the number of remembered requests."""
        return len(self._requests)

    def record(self, experts: Sequence[str]) -> None:
        """Remember the experts of a request; none is the base model alone."""
        names = tuple(experts) or (BASE,)
        self._requests.append(names)
        self._counts.update(names)
        if len(self._requests) > self.size:
            self._counts.subtract(self._requests.popleft())

    def counts(self) -> dict[str, int]:
        """Return the number of remembered requests of each expert that answered one."""
        return {name: count for name, count in self._counts.items() if count}

    def share(self, name: str) -> float:
        """Return the share of the remembered requests that an expert answered, from 0 to 1."""
        return self._counts[name] / len(self._requests) if self._requests else 0.0

    def dominant(self, limit: float) -> str | None:
        """Return the expert that answered at least a share of a full window, None if none did.

        Args:
            limit: The share, from 0 to 1. The base model alone is not an expert.
        """
        if len(self._requests) < self.size:
            return None
        names = (name for name in self._counts if name != BASE and self.share(name) >= limit)
        return max(names, key=self.share, default=None)
