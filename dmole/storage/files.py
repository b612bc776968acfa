"""Files that are whole or absent: written beside their place, then moved into it."""

from __future__ import annotations

import csv
import json
import os
import re
import secrets
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

_PART = ".part"


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def check_name(name: object, what: str) -> str:
    """Return a name that becomes a file or folder, if it can lead nowhere else.

    Args:
        name: Letters, digits, ``_`` and ``-``, beginning with a letter or digit, at most 200.
        what: What bears it, for the message.

    Raises:
        ValueError: If it is anything else.
    """
    if not isinstance(name, str) or len(name) > 200 or not _NAME.fullmatch(name):
        raise ValueError(
            f"{what} {str(name)[:80]!r} must be letters, digits, '_' or '-', "
            "beginning with a letter or digit"
        )
    return name


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success it replaces ``path``, else it goes.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "a.txt"
        >>> with atomic_path(target) as temporary:
        ...     _ = temporary.write_text("whole")
        >>> target.read_text()
        'whole'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}{_PART}")
    # made as any file is, unlike by `tempfile`: the system takes the umask off the permissions
    handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    usual = stat.S_IMODE(os.fstat(handle).st_mode)
    os.close(handle)
    try:
        with faults_name(path):
            yield temporary
        _flush(temporary)
        temporary.chmod(usual)  # some writers put a private file of their own in its place
        temporary.replace(path)
        _flush(path.parent)  # else the new name may be lost with the power
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def faults_name(path: Path) -> Iterator[None]:
    """Let faults of the system in the body of a ``with`` statement name a file.

    A full disk does not say by itself what was being written.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def remove_parts(folder: Path) -> None:
    """Remove what a killed process left half-written in a folder and those below it."""
    for path in folder.rglob(f".*{_PART}"):
        path.unlink(missing_ok=True)


def read_text(path: Path, what: str = "") -> str:
    """Return the text of a file, with or without a byte order mark at its start.

    Args:
        path: The file, UTF-8.
        what: What the file holds, for the message.

    Raises:
        ValueError: If it cannot be read or is not UTF-8; names the file.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise _unreadable(path, what, error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        raise _unreadable(path, what, f"is not UTF-8 text: {error}") from error


def read_json(path: Path, what: str = "") -> Any:
    """Return the content of a JSON file.

    Args:
        path: The file, UTF-8 with or without a byte order mark.
        what: What the file holds, for the message.

    Raises:
        ValueError: If it cannot be read, is not UTF-8 or not JSON; names file and place.
    """
    text = read_text(path, what)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        reason = f"broken JSON at line {error.lineno} column {error.colno}: {error.msg}"
        raise _unreadable(path, what, reason) from error
    except (ValueError, RecursionError) as error:  # a number too long, lists too deep
        raise _unreadable(path, what, str(error)) from error


def _unreadable(path: Path, what: str, reason: str) -> ValueError:
    return ValueError(f"cannot read {what} {path}: {reason}" if what else f"{path}: {reason}")


def write_json(path: Path, content: Any) -> None:
    """Write JSON with sorted structure kept as given; NaN is refused."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a table; a column missing from a row is left empty."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, header, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _flush(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
