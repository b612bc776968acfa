"""Plain values of files that anyone may have written: JSON, and what every program can handle."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from dmole.messages import one_line

MAX_DEPTH = 100
"""Levels of lists and mappings that a file of plain values may have."""


def parse_json(text: str | bytes, *, line: int = 1, unique: bool = False) -> Any:
    """Return the value of a JSON text; every error is a `ValueError` of one line.

    Args:
        text: The text.
        line: Number of its first line in the file, for the message.
        unique: Refuse a mapping that has a key twice. The last of them counts otherwise.

    Raises:
        ValueError: If the text is not JSON, nested too deep or holds a number that is too long.

    Example:
        >>> parse_json('{"a": [1]}')
        {'a': [1]}
    """
    try:
        return json.loads(text, object_pairs_hook=_unique if unique else None)
    except json.JSONDecodeError as error:
        where = f"line {line + error.lineno - 1} column {error.colno}"
        raise ValueError(f"broken JSON at {where}: {error.msg}") from error
    except RecursionError as error:
        raise ValueError("broken JSON: lists or mappings are nested too deep") from error
    except ValueError as error:  # a number too long, bytes that are not text, a key twice
        raise ValueError(f"broken JSON: {one_line(error)}") from error


def check_values(content: Any, *, finite: bool = True) -> None:
    """Raise if a value cannot be handled everywhere: in sums, tables, messages and files.

    Args:
        content: Lists and mappings of plain values.
        finite: Refuse numbers that are infinite or not a number.

    Raises:
        ValueError: If a number is not finite or needs more than 64 bits, a text is not Unicode, or
            the nesting is deeper than `MAX_DEPTH`; names the key.

    Example:
        >>> check_values({"figures": [0.5, {"seconds": 10 ** 400}]})
        Traceback (most recent call last):
        ValueError: figures[1].seconds: the number needs more than 64 bits
    """
    levels: list[Iterator[tuple[Any, Any]]] = [iter([("", content)])]
    keys: list[Any] = [""]
    while levels:
        key, value = next(levels[-1], (_END, None))
        if key is _END:
            levels.pop()
            keys.pop()
            continue
        keys[-1] = key
        problem = _problem(key) or _problem(value)
        if problem is None and isinstance(value, float) and finite and not math.isfinite(value):
            problem = f"the number {value} is not finite"
        if isinstance(value, dict | list):
            if len(levels) > MAX_DEPTH:
                problem = f"it is nested deeper than {MAX_DEPTH} levels"
            levels.append(iter(value.items()) if isinstance(value, dict) else enumerate(value))
            keys.append("")
        if problem is not None:
            raise ValueError(f"{_where(keys)}: {problem}")


_END = object()


def _where(keys: list[Any]) -> str:
    parts = [f"[{key}]" if isinstance(key, int) else f".{str(key)[:40]}" for key in keys[:8]]
    return one_line("".join(parts).strip(".")) or "the value"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise ValueError(f"key {counts.most_common(1)[0][0][:80]!r} is set twice")
    return mapping


def _problem(value: Any) -> str | None:
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        return "the number needs more than 64 bits"
    if isinstance(value, str) and re.search("[\ud800-\udfff]", value):
        return "the text holds half of a surrogate pair"
    return None


def listed(saved: str | list[Any]) -> list[Any]:
    """Return a list that is saved as a text, or as it is in checkpoints before format 5."""
    if not isinstance(saved, str):
        return saved
    content = parse_json(saved)
    if not isinstance(content, list):
        raise ValueError(f"expected a list, got {saved!r:.80}")
    return content
