"""Reads the items of a data file one at a time; memory does not grow with the file.

ijson, the library for this, is twice as fast (version 3.6 with its C backend: 2.0 s per million
items, 4.4 s here), but it does not report malformed or unusual files in one clear line. A hundred
thousand opening brackets take more than 5 GB, one value of a repeated key is dropped, and half of
a surrogate pair becomes a question mark. It also rejects NaN, Infinity, 1e400 and integers of more
than 64 bits, which the ``json`` module reads.
"""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dmole.data.json_values import decode_value

_PIECE = 1 << 20  # bytes read at a time
_SUFFIXES = (".json", ".jsonl")
_SPACE = re.compile(r"[ \t\n\r]*")
# an error this close to the end of the text may be due to the cut: the longest token that does
# not start with a quotation mark is an escaped pair, \uXXXX\uXXXX
_TOKEN = 16


def stream_items(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield the items of a data file with their positions, counted from 0.

    Only the current item and a piece of the text are in memory. Numbers and constants are those
    of the ``json`` module, including ``NaN`` and ``Infinity``. Ambiguous content (a repeated key in
    an object, half a surrogate pair) is rejected.

    Args:
        path: A ``.json`` file, which holds one list, or a ``.jsonl`` file, one item per line.
            Blank lines and a byte order mark are skipped.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is not UTF-8 text, is broken, or does not hold a list. The message
            is one line that names the file and the line and column, or the item.
    """
    if path.suffix not in _SUFFIXES:
        raise ValueError(f"data file {path} must end in .json or .jsonl")
    if not path.is_file():
        raise FileNotFoundError(f"data file {path} does not exist")
    pieces = _pieces(path)
    yield from enumerate(_lines(pieces, path) if path.suffix == ".jsonl" else _list(pieces, path))


def kind_of(value: Any) -> str:
    """Return the JSON name of a value's type; for an object, with its first keys."""
    if isinstance(value, dict):
        keys = ", ".join(map(repr, list(value)[:3]))
        return f"an object (keys {keys}{', ...' if len(value) > 3 else ''})"
    names = {list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _pieces(path: Path) -> Iterator[str]:
    """Yield the text of a file in pieces; all line ends become newlines."""
    utf8 = codecs.getincrementaldecoder("utf-8")()
    decoder = io.IncrementalNewlineDecoder(utf8, translate=True)
    with path.open("rb") as file:
        if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
            file.seek(0)
        data = b"unread"
        while data:
            start = file.tell() - len(utf8.getstate()[0])
            data = file.read(_PIECE)
            try:
                yield decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                byte = error.object[error.start]
                raise ValueError(
                    f"{path}: is not UTF-8 text: byte 0x{byte:02x} at position "
                    f"{start + error.start}: {error.reason}"
                ) from error


def _lines(pieces: Iterator[str], path: Path) -> Iterator[Any]:
    index = 0
    for number, line in enumerate(_split(pieces), start=1):
        if line.strip():
            try:
                value, end = decode_value(line, _after_space(line, 0), f"{path}: item {index}")
                if _after_space(line, end) < len(line):
                    raise json.JSONDecodeError("Extra data", line, _after_space(line, end))
            except json.JSONDecodeError as error:
                if index == 0 and line.lstrip().startswith("["):
                    raise _one_list(path) from error
                raise _broken(path, number, error.colno, error.msg) from error
            yield value
            index += 1


def _split(pieces: Iterator[str]) -> Iterator[str]:
    """Yield the lines, split only at newlines, as JSON requires, unlike `str.splitlines`."""
    parts: list[str] = []
    for piece in pieces:
        first, *others = piece.split("\n")
        parts.append(first)
        for line in others:
            yield "".join(parts)
            parts = [line]
    yield "".join(parts)


def _list(pieces: Iterator[str], path: Path) -> Iterator[Any]:
    window = _Window(pieces, path)
    if window.peek() != "[":
        raise window.not_a_list()
    window.at += 1
    index = 0
    more = window.peek() != "]"
    while more:
        yield window.value(index)
        index += 1
        more = window.peek() == ","
        if more:
            window.at += 1
            window.peek()
    if window.peek() != "]":
        raise window.broken("Expecting ',' delimiter")
    window.at += 1
    if window.peek():
        raise window.broken("Extra data")


class _Window:
    """The part of a text that is being read.

    Args:
        pieces: The text, in pieces.
        path: The file, for messages.

    Attributes:
        at: Position in the part where reading continues.
    """

    def __init__(self, pieces: Iterator[str], path: Path) -> None:
        self._pieces = pieces
        self._path = path
        self._text = ""
        self._ended = False
        self._line, self._column = 1, 1  # of the first character of the part
        self.at = 0

    def peek(self) -> str:
        """Advance to the next non-space character and return it; empty at the end."""
        self.at = _after_space(self._text, self.at)
        while self.at == len(self._text) and not self._ended:
            self._grow()
            self.at = _after_space(self._text, self.at)
        return self._text[self.at : self.at + 1]

    def value(self, index: int) -> Any:
        """Return the value that begins here and advance past it."""
        while True:
            try:
                value, end = decode_value(self._text, self.at, f"{self._path}: item {index}")
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or error.pos + _TOKEN > len(self._text)
                if self._ended or not cut:
                    self.at = error.pos
                    raise self.broken(error.msg) from error
            else:
                if self._ended or end + 2 < len(
                    self._text
                ):  # else a number may continue: 1 as 1e+2
                    self.at = end
                    return value
            self._grow()

    def broken(self, reason: str) -> ValueError:
        """Return the error of a text that is malformed at this position."""
        line, column = self._line_and_column()
        return _broken(self._path, line, column, reason)

    def not_a_list(self) -> ValueError:
        """Return the error of a text that does not begin with a list."""
        if self._has_lines():
            return ValueError(f"{self._path}: holds one item per line: its name must end in .jsonl")
        kind = "an object"  # a large one is not read only to list its keys
        if self.peek() != "{" or self._path.stat().st_size <= _PIECE:
            kind = kind_of(self.value(0))
            if self.peek():
                return self.broken("Extra data")
        return ValueError(f"{self._path}: must hold a list of items, but holds {kind}")

    def _has_lines(self) -> bool:
        """Return whether an object on a line of its own is followed by another one."""
        end = self._text.find("\n", self.at)
        try:
            value = json.loads(self._text[self.at : end]) if end >= 0 else None
        except (ValueError, RecursionError):
            return False
        return isinstance(value, dict) and self._text[_after_space(self._text, end) :][:1] == "{"

    def _grow(self) -> None:
        """Drop the text already read and append at least as much as remains."""
        self._line, self._column = self._line_and_column()
        parts = [self._text[self.at :]]
        self.at, missing = 0, len(parts[0])
        while not self._ended and missing >= 0:
            piece = next(self._pieces, None)
            self._ended = piece is None
            parts.append(piece or "")
            missing -= len(parts[-1])
        self._text = "".join(parts)

    def _line_and_column(self) -> tuple[int, int]:
        """Return line and column of the position."""
        newlines = self._text.count("\n", 0, self.at)
        if not newlines:
            return self._line, self._column + self.at
        return self._line + newlines, self.at - self._text.rindex("\n", 0, self.at)


def _after_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match is not None  # it matches the empty text
    return match.end()


def _one_list(path: Path) -> ValueError:
    return ValueError(f"{path}: holds one list of items: its name must end in .json")


def _broken(path: Path, line: int, column: int, reason: str) -> ValueError:
    return ValueError(f"{path}: broken JSON at line {line} column {column}: {reason}")
