"""Reads files that anyone may have written: regular files of bounded size, plain values only."""

from __future__ import annotations

import io
import json
import math
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from dmole.messages import one_line

SMALL = 32 << 20
"""Bytes that a file of settings, figures, names or prompts may have."""

MAX_DEPTH = 100
"""Levels of lists and mappings that a file of plain values may have."""

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def check_file(path: str | Path, what: str = "", limit: int | None = None) -> None:
    """Raise unless a path is a regular file, after following links.

    Opening a named pipe waits for ever, and a device may have no end.

    Args:
        path: The file.
        what: Description of the content, for the message.
        limit: Most bytes; None for kinds of files that are legitimately large, such as data.

    Raises:
        ValueError: If the file is missing, of another kind or too large; names the file.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:  # a name with a null byte is a ValueError
        raise unreadable(path, what, _reason(error)) from error
    _check_status(path, what, status, limit)


def open_file(path: str | Path, what: str = "", limit: int | None = None) -> BinaryIO:
    """Open a file in binary form after the checks of `check_file`, without ever waiting.

    Args:
        path: The file.
        what: Description of the content, for the message.
        limit: Most bytes; None for kinds of files that are legitimately large.

    Raises:
        ValueError: If the file cannot be opened; names it.
    """
    check_file(path, what, limit)
    try:
        # the file may have been replaced by a pipe since the check: do not wait for its writer
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        try:
            _check_status(path, what, os.fstat(handle), limit)
            return os.fdopen(handle, "rb")
        except BaseException:
            os.close(handle)
            raise
    except OSError as error:
        raise unreadable(path, what, _reason(error)) from error


def read_bytes(path: str | Path, what: str = "", limit: int | None = SMALL) -> bytes:
    """Return the content of a file.

    Args:
        path: The file.
        what: Description of the content, for the message.
        limit: Most bytes; None for kinds of files that are legitimately large.

    Raises:
        ValueError: If the file cannot be read; names it.
    """
    with open_file(path, what, limit) as file:
        try:  # a file of /proc states no size
            content = file.read() if limit is None else file.read(limit + 1)
        except OSError as error:
            raise unreadable(path, what, _reason(error)) from error
    if limit is not None and len(content) > limit:
        raise unreadable(path, what, _too_large(limit))
    return content


def read_text(path: str | Path, what: str = "", limit: int | None = SMALL) -> str:
    r"""Return the text of a file, with or without a byte order mark at its start.

    Args:
        path: The file, UTF-8. Ends of lines become ``\n``.
        what: Description of the content, for the message.
        limit: Most bytes; None for kinds of files that are legitimately large.

    Raises:
        ValueError: If it cannot be read or is not UTF-8; names the file.
    """
    content = read_bytes(path, what, limit)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise unreadable(path, what, f"line {line} is not UTF-8 text: {error.reason}") from error
    return io.IncrementalNewlineDecoder(None, translate=True).decode(text, final=True)


def read_json(path: str | Path, what: str = "", limit: int | None = SMALL) -> Any:
    """Return the content of a JSON file of plain, finite values.

    Args:
        path: The file, UTF-8 with or without a byte order mark.
        what: Description of the content, for the message.
        limit: Most bytes; None for data, whose values and keys are not restricted.

    Raises:
        ValueError: If it cannot be read, is not UTF-8 or not JSON, or if `check_values` refuses
            a value; names the file, and the line or the key.
    """
    text = read_text(path, what, limit)
    try:
        content = parse_json(text, unique=limit is not None)
        if limit is not None:
            check_values(content)
    except ValueError as error:
        raise unreadable(path, what, str(error)) from error
    return content


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


def unreadable(path: str | Path, what: str, reason: str) -> ValueError:
    """Return the error of a file that cannot be used.

    Args:
        path: The file.
        what: Description of the content; may be empty.
        reason: What is wrong with it.
    """
    reason = one_line(reason)
    return ValueError(f"cannot read {what} {path}: {reason}" if what else f"{path}: {reason}")


def _check_status(path: str | Path, what: str, status: os.stat_result, limit: int | None) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "of an unknown kind")
        raise unreadable(path, what, f"it is {kind}, not a file")
    if limit is not None and status.st_size > limit:
        raise unreadable(path, what, _too_large(limit))


def _too_large(limit: int) -> str:
    return f"it is larger than {limit:,} bytes"


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


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
