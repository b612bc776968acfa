"""Converts the values of further keys of an item to JSON values."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any


def plain(value: Any, key: str) -> Any:
    """Return a JSON-serializable value; other types such as dates become text.

    Args:
        value: The value.
        key: Its key in messages.

    Raises:
        ValueError: If it holds bytes, because an image, audio or video would be dropped silently,
            or is nested too deeply.
    """
    try:
        return _plain(value, key)
    except RecursionError:
        raise ValueError(f"the value of {key!r} is nested too deeply") from None


def _plain(value: Any, key: str) -> Any:
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, list | tuple):
        return [_plain(inner, key) for inner in value]
    if isinstance(value, Mapping):
        return {str(name): _plain(inner, key) for name, inner in value.items()}
    if isinstance(value, bytes | bytearray | memoryview):
        raise ValueError(f"has bytes under {key!r}, a key that is not read")
    return str(value)


def rest_of(entry: Mapping[str, Any], used: Collection[str]) -> dict[str, Any]:
    """Return the keys of a turn or part that no reader uses and that are not None.

    Raises:
        ValueError: If a value holds bytes.
    """
    rest = {key: value for key, value in entry.items() if key not in used and value is not None}
    return {key: plain(value, key) for key, value in rest.items()}
