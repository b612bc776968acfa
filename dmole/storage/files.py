"""Reads and writes files; each write goes to a temporary file, which then replaces the target."""

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
    """Return a name for a file or folder if it is safe as a part of a path.

    Args:
        name: At most 200 letters, digits, ``_`` and ``-``, beginning with a letter or digit.
        what: Description of the named object, for the message.

    Raises:
        ValueError: If the name has another form.
    """
    if not isinstance(name, str) or len(name) > 200 or not _NAME.fullmatch(name):
        raise ValueError(
            f"{what} {str(name)[:80]!r} must be letters, digits, '_' or '-', "
            "beginning with a letter or digit"
        )
    return name


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder. It replaces ``path``, or is removed on an error.

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
    # unlike `tempfile`, create the file with the usual permissions, reduced by the umask
    handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    usual = stat.S_IMODE(os.fstat(handle).st_mode)
    os.close(handle)
    try:
        with errors_naming(path):
            yield temporary
        _flush(temporary)
        temporary.chmod(usual)  # some writers replace the file by one with private permissions
        temporary.replace(path)
        _flush(path.parent)  # else a power failure may undo the renaming
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def errors_naming(path: Path) -> Iterator[None]:
    """Add a file's name to an `OSError` without one in the body of a ``with`` statement.

    The error of a full disk, for example, does not name the file.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def remove_parts(folder: Path) -> None:
    """Remove the temporary files that a killed process left in a folder and its subfolders."""
    for path in folder.rglob(f".*{_PART}"):
        path.unlink(missing_ok=True)


def read_text(path: Path, what: str = "") -> str:
    """Return the text of a file, with or without a byte order mark at its start.

    Args:
        path: The file, UTF-8.
        what: Description of the content, for the message.

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
        what: Description of the content, for the message.

    Raises:
        ValueError: If it cannot be read, is not UTF-8 or not JSON; names file and position.
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
    """Write JSON with keys in the order given; NaN is refused."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object per line."""
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
    """Wait until a file or folder is written to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
