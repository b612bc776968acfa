"""A cache of bounded size in the memory of a process."""

from __future__ import annotations

from collections.abc import Hashable
from random import Random
from threading import Lock
from typing import Any, Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class BoundedCache(Generic[Key, Value]):
    """Values by key; entries chosen at random leave when it is full.

    Passes over more data than fit find a part of it again. If the entries used least recently
    left, they would find nothing.

    Threads may share it. A copy in another process is empty if it is sent there, and has the
    present entries if the process is forked.

    Args:
        limit: Largest sum of the sizes of all entries, in the unit of the caller.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._entries: dict[Key, tuple[Value, int]] = {}
        self._keys: list[Key] = []
        self._size = 0
        self._random = Random(0)  # decides what is computed again, never a result
        self._lock = Lock()

    def __len__(self) -> int:
        """Return the number of entries."""
        return len(self._entries)

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        """Return a cache without entries, for pickle."""
        return type(self), (self._limit,)

    def get(self, key: Key) -> Value | None:
        """Return the value of a key; None if it is not there."""
        entry = self._entries.get(key)
        return None if entry is None else entry[0]

    def put(self, key: Key, value: Value, size: int) -> None:
        """Store a value under a new key; one larger than the limit is not stored.

        Args:
            key: The key; if it is there already, its value stays.
            value: The value, which must not change afterwards.
            size: Its size.
        """
        with self._lock:
            if size > self._limit or key in self._entries:
                return
            self._size += size
            while self._size > self._limit:
                chosen = self._random.randrange(len(self._keys))
                self._keys[chosen], self._keys[-1] = self._keys[-1], self._keys[chosen]
                self._size -= self._entries.pop(self._keys.pop())[1]
            self._entries[key] = value, size
            self._keys.append(key)
