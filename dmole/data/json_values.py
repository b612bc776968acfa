"""Decodes one JSON value at a position of a text; ambiguous values are refused."""

from __future__ import annotations

import json
from typing import Any


def decode_value(text: str, at: int, name: str) -> tuple[Any, int]:
    """Return the value that begins at a position, and the position of its end."""
    try:
        value, end = _DECODER.raw_decode(text, at)
        if text.find("\\ud", at, end) >= 0 or text.find("\\uD", at, end) >= 0:
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError:
        raise
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise ValueError(f"{name}: holds {half!r}, half of a surrogate pair") from error
    except RecursionError:
        raise ValueError(f"{name}: is nested too deeply") from None
    except ValueError as error:
        if "integer string conversion" in str(error):  # Python's guard against slow conversions
            raise ValueError(f"{name}: holds a number of more than 4300 digits") from error
        raise ValueError(f"{name}: {error}") from error
    return value, end


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object from its keys and values; reject repeated keys, which ``json`` drops."""
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"has the key {twice!r} twice in one object")
    return made


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)
