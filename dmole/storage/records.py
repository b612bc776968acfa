"""Reads JSON or JSON lines, which are told apart by the content and not by the file's suffix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmole.storage.reading import SMALL, read_text, unreadable
from dmole.storage.values import parse_json


@dataclass(frozen=True)
class Records:
    """The values of a file.

    Args:
        path: The file.
        content: The value of a JSON file, or the list of the values of JSON lines.
        lines: Line of each value, for JSON lines and for one value on one line; else empty.
    """

    path: Path
    content: Any
    lines: tuple[int, ...] = ()

    def entries(self, is_entry: Callable[[dict[str, Any]], bool]) -> list[Any] | None:
        """Return the entries of the file, None if it holds one object of another kind.

        Args:
            is_entry: Returns whether an object is an entry. A file of JSON lines with one line
                looks like an object of entries otherwise.
        """
        if isinstance(self.content, list):
            return self.content
        single = not isinstance(self.content, dict) or is_entry(self.content)
        return [self.content] if single else None

    def where(self, index: int) -> str:
        """Return the place of an entry for messages: the file with the line or the number."""
        if index < len(self.lines):
            return f"{self.path}: line {self.lines[index]}"
        return f"{self.path}: entry {index + 1}"


def read_records(path: Path, what: str = "", limit: int | None = SMALL) -> Records:
    """Read a file of JSON or JSON lines, UTF-8 with or without a byte order mark.

    It is JSON lines if it has several lines that are not blank and the first one is a whole JSON
    value. Lines may end in a carriage return.

    Args:
        path: The file.
        what: Description of the content, for the message.
        limit: Most bytes; None for kinds of files that are legitimately large.

    Raises:
        ValueError: If it cannot be read, is broken or holds a key twice; names file and line.
    """
    text = read_text(path, what, limit)
    numbered = enumerate(text.split("\n"), start=1)
    lines = [(number, line) for number, line in numbered if line.strip()]
    if len(lines) > 1 and _is_value(lines[0][1]):
        values = [_parse(path, what, number, line) for number, line in lines]
        return Records(path, values, tuple(number for number, _ in lines))
    if not lines:
        return Records(path, [])
    try:
        content = parse_json(text, unique=True)
    except ValueError as error:
        raise unreadable(path, what, str(error)) from error
    single = len(lines) == 1 and not isinstance(content, list)
    return Records(path, content, (lines[0][0],) if single else ())


def _is_value(line: str) -> bool:
    try:
        parse_json(line)
    except ValueError:
        return False
    return True


def _parse(path: Path, what: str, number: int, line: str) -> Any:
    try:
        return parse_json(line, line=number, unique=True)
    except ValueError as error:
        reason = str(error)
        if f"at line {number} " not in reason:  # a key twice has no position
            reason = f"line {number}: {reason}"
        raise unreadable(path, what, reason) from error
