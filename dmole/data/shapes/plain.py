"""Makes JSON values of what a table or a file holds beside the conversation."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any


def plain(value: Any, key: str) -> Any:
    """Return a value as JSON can hold it; dates and the like become text.

    Args:
        value: The value.
        key: Its key in messages.

    Raises:
        ValueError: If it holds bytes, which would be an image, sound or film that is left out
            without a word, or is nested too deeply.
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
    """Return the keys of a turn or part that no reader uses and that hold something.

    Raises:
        ValueError: If one holds bytes.
    """
    rest = {key: value for key, value in entry.items() if key not in used and value is not None}
    return {key: plain(value, key) for key, value in rest.items()}
