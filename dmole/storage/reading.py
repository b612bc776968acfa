"""Reads files that anyone may have written: regular files of bounded size, plain values only."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from dmole.messages import one_line
from dmole.storage.values import check_values, parse_json

SMALL = 32 << 20
"""Bytes that a file of settings, figures, names or prompts may have."""

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


def check_folder(folder: str | Path, what: str = "") -> None:
    """Raise if a folder or a folder in it holds an entry that is neither a file nor a folder.

    Args:
        folder: The folder, which a library is about to read.
        what: Description of its content, for the message.

    Raises:
        ValueError: If an entry is a named pipe, a socket or a device; names it.
    """
    for pattern in ("*", "*/*"):
        for path in sorted(Path(folder).glob(pattern)):
            if path.exists() and not path.is_dir():  # the library names a broken link it needs
                check_file(path, what)


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


@contextmanager
def refusing(path: str | Path, what: str = "") -> Iterator[None]:
    """Raise any error in the body of a ``with`` statement as one line that names a file.

    For content whose form is not known before it is used: a program may have written anything.

    Args:
        path: The file whose content is used.
        what: Description of the content, for the message.

    Raises:
        ValueError: If the body raises an error that names neither the file nor one beside it.
    """
    try:
        yield
    except Exception as error:
        beside = Path(path) if Path(path).parent == Path() else Path(path).parent
        named = isinstance(error, ValueError | OSError) and str(beside) in str(error)
        if named or getattr(error, "exit_status", None) is not None:  # a signal ends the run
            raise
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        where = f"{what} {path}".lstrip()
        raise ValueError(f"cannot use {where}: {kind}{one_line(error)}") from error


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
