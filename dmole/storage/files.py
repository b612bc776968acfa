"""Writes files, each first to a temporary file, which then replaces the target; checks names.

The functions that read are here as well: `check_file`, `read_text`, `read_json`, `read_yaml`.
"""

from __future__ import annotations

import csv
import errno
import json
import logging
import os
import re
import secrets
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmole.messages import visible
from dmole.storage.reading import (
    check_file,
    check_folder,
    open_file,
    read_bytes,
    read_json,
    read_text,
    refusing,
)
from dmole.storage.values import parse_json
from dmole.storage.yaml_file import read_yaml

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

__all__ = [
    "atomic_path",
    "check_file",
    "check_folder",
    "check_name",
    "errors_naming",
    "open_file",
    "parse_json",
    "read_bytes",
    "read_json",
    "read_text",
    "read_yaml",
    "refusing",
    "remove_parts",
    "write_csv",
    "write_json",
    "write_lines",
]

log = logging.getLogger("dmole")

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
def atomic_path(path: Path, *, flush: bool = True) -> Iterator[Path]:
    """Yield a temporary path in the same folder. It replaces ``path``, or is removed on an error.

    Args:
        path: The file.
        flush: Whether to wait until the disk has it; else it may be damaged by a power failure.

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
    with errors_naming(path):
        # unlike `tempfile`, create the file with the usual permissions, reduced by the umask
        handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        usual = stat.S_IMODE(os.fstat(handle).st_mode)
        os.close(handle)
        try:
            yield temporary
            if flush:
                _flush(temporary)
            _set_permissions(temporary, usual)
            temporary.replace(path)
            if flush:
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
    """Write a table; a column missing from a row is left empty.

    A text that a spreadsheet would take for a formula is preceded by an apostrophe, and characters
    that are not visible are written as escapes.
    """
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, header, restval="", lineterminator="\n")
        writer.writerow({name: _cell(name) for name in header})
        writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)


_FORMULA = tuple("=+-@\t\r＝＋－＠")  # noqa: RUF001 the wide forms begin formulas, too


def _cell(value: Any) -> Any:
    """Return a value that a spreadsheet shows and does not compute; numbers stay numbers."""
    if not isinstance(value, str):
        return value
    if value.startswith(_FORMULA):
        try:
            float(value)
        except ValueError:
            value = f"'{value}"
    return visible(value, keep="\n")


UNSUPPORTED = frozenset(
    {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM, errno.ENOLCK}
)
"""Error numbers of an operation that a file system does not have: CIFS, FUSE, some NFS servers."""


def _flush(path: Path) -> None:
    """Wait until a file or folder is written to disk; warn once where it cannot be flushed."""
    kind, folder = ("folders", path) if path.is_dir() else ("files", path.parent)
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        unreadable = kind == "folders" and error.errno == errno.EACCES
        if error.errno not in UNSUPPORTED and not unreadable:
            raise
        _warn_once(f"does not flush {kind}, so a power failure may undo writes", folder, error)


def _set_permissions(path: Path, usual: int) -> None:
    """Set permissions again where a writer replaced the file by one with private permissions."""
    if stat.S_IMODE(path.stat().st_mode) == usual:
        return
    try:
        path.chmod(usual)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        _warn_once("sets no permissions", path.parent, error)


_warned: set[str] = set()
"""What this process has warned of."""


def _warn_once(what: str, folder: Path, error: OSError) -> None:
    if what not in _warned:
        _warned.add(what)
        log.warning("%s: this file system %s (%s)", folder, what, error.strerror)
