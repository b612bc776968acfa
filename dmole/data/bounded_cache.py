"""A cache of bounded size that drops what was used least recently."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from threading import Lock
from typing import Any, Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class BoundedCache(Generic[Key, Value]):
    """Values by key, in the memory of one process.

    Threads may share it. A copy in another process is empty if it is sent there, and has the
    present entries if the process is forked.

    Args:
        limit: Largest sum of the sizes of all entries, in the unit of the caller.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._entries: OrderedDict[Key, tuple[Value, int]] = OrderedDict()
        self._size = 0
        self._lock = Lock()

    def __len__(self) -> int:
        """Return the number of entries."""
        return len(self._entries)

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        """Return a cache without entries, for pickle."""
        return type(self), (self._limit,)

    def get(self, key: Key) -> Value | None:
        """Return the value of a key; None if it is not there."""
        with self._lock:
            if key not in self._entries:
                return None
            self._entries.move_to_end(key)
            return self._entries[key][0]

    def put(self, key: Key, value: Value, size: int) -> None:
        """Store a value; one larger than the limit is not stored.

        Args:
            key: The key.
            value: The value, which must not change afterwards.
            size: Its size.
        """
        if size > self._limit:
            return
        with self._lock:
            self._size += size - self._entries.pop(key, (None, 0))[1]
            self._entries[key] = value, size
            while self._size > self._limit:
                self._size -= self._entries.popitem(last=False)[1][1]
