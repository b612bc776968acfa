"""A file of float32 rows by name that grows by appending and is never trusted blindly.

The file begins with a header of fixed size, JSON that says what the rows are. Blocks follow::

    "rows", number N | N entries: hash of the name, digest of name and row | digest | N rows

A process that is
killed leaves a broken last block, which is cut off before the next one is written. Rows are read
from the file one by one, so they take no memory; unlike a memory map, a read survives a file that
someone cuts short.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import torch
from torch import Tensor

from dmole.messages import one_line
from dmole.storage.files import atomic_path, errors_naming, open_file, parse_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

log = logging.getLogger("dmole")

FORMAT = 1
"""Version of the file."""

_HEADER = 2048  # bytes
_MAGIC = b"rows"
_COUNT = struct.Struct("<4sI")
_NAME, _DIGEST = 16, 8  # bytes
_ENTRY = _NAME + _DIGEST


class RowFile:
    """Float32 rows by name in one file.

    A file of another origin is not read, and is replaced by the first rows that are added. Rows
    whose digest does not fit are left out. Each of these is logged in one line.

    Args:
        path: The file; it need not exist.
        origin: What the rows depend on; a file with other values is of another origin.
        width: Length ``D`` of a row.
        tell: Receives what is wrong in place of the log.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.rows"
        >>> RowFile(path, {"base": "x"}, 2).add(["first"], torch.tensor([[1.0, 2.0]]))
        >>> RowFile(path, {"base": "x"}, 2).found(["first", "second"])
        {'first': tensor([1., 2.])}
        >>> RowFile(path, {"base": "y"}, 2).found(["first"])
        {}
    """

    def __init__(
        self,
        path: Path,
        origin: Mapping[str, str],
        width: int,
        tell: Callable[[str], object] | None = None,
    ) -> None:
        self.path = path
        self._tell = tell
        self._origin = {"format": FORMAT, **origin, "width": width}
        self._width = width
        self._entries: dict[bytes, tuple[int, bytes]] = {}  # by name: place and digest of its row
        self._end = 0  # of the last whole block; 0 if the file is not used
        self._inode = 0
        self._logged: set[str] = set()
        self.refresh()

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._entries)

    def __contains__(self, name: str) -> bool:
        """Return whether the file lists a row; it is not read."""
        return _key(name) in self._entries

    def refresh(self) -> None:
        """Read the entries that another process has added."""
        if not os.path.lexists(self.path):
            self._forget()
            return
        try:
            with open_file(self.path) as file:
                status = os.fstat(file.fileno())
                if status.st_ino != self._inode or status.st_size < self._end:
                    self._forget()
                    self._inode = status.st_ino
                if not self._end:
                    self._check_header(file)
                    self._end = _HEADER
                self._read_blocks(file, status.st_size)
        except (ValueError, OSError) as error:
            self._log(one_line(error))
            self._forget()

    def _forget(self) -> None:
        self._entries, self._end, self._inode = {}, 0, 0

    def found(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return the rows that are there and intact, ``(D,)`` each, by name."""
        keys = {name: key for name in names if (key := _key(name)) in self._entries}
        rows: dict[str, Tensor] = {}
        if not keys:
            return rows
        try:
            with open_file(self.path) as file:
                for name, key in keys.items():
                    begin, digest = self._entries[key]
                    content = os.pread(file.fileno(), 4 * self._width, begin)
                    row = np.frombuffer(content, "<f4") if _digest(key, content) == digest else None
                    if row is not None and np.isfinite(row).all():
                        rows[name] = torch.from_numpy(row.copy())
                    else:
                        self._log(f"{self.path} has damaged rows")
                        del self._entries[key]
        except (ValueError, OSError) as error:  # it was deleted
            self._log(one_line(error))
            self._forget()
        return rows

    def add(self, names: Sequence[str], rows: Tensor) -> None:
        """Append rows; those of known names replace the old ones.

        Args:
            names: One per row.
            rows: Shape ``(N, D)``.

        Raises:
            OSError: If the file cannot be written; names it.
            ValueError: If the rows have another width.
        """
        values = np.ascontiguousarray(rows.detach().cpu().float().numpy(), "<f4")
        if values.shape != (len(names), self._width):
            raise ValueError(f"{self.path} has rows of {self._width} numbers, not {values.shape}")
        self.refresh()
        if self._grows():
            with errors_naming(self.path), self.path.open("r+b") as file:
                file.truncate(self._end)
                file.seek(self._end)
                file.writelines(_block(names, values))
        else:
            self._replace(_block(names, values))
        self.refresh()

    def _grows(self) -> bool:
        """Return whether the file itself can be appended to: it is whole, and nobody else's."""
        if not self._end or self.path.is_symlink():
            return False
        return self.path.stat().st_nlink == 1  # another run may have a link to it

    def _replace(self, block: Iterable[bytes]) -> None:
        """Write a new file with the rows of the present one, if it is used, and a block."""
        with atomic_path(self.path) as temporary, temporary.open("wb") as file:
            if self._end:
                with open_file(self.path) as present:
                    shutil.copyfileobj(present, file)
                file.truncate(self._end)
                file.seek(self._end)
            else:
                file.write(self._header())
            file.writelines(block)

    def _header(self) -> bytes:
        text = json.dumps(self._origin, sort_keys=True).encode()
        if len(text) >= _HEADER:
            raise ValueError(f"the origin of {self.path} is longer than {_HEADER} bytes")
        return text.ljust(_HEADER - 1) + b"\n"

    def _check_header(self, file: BinaryIO) -> None:
        """Refuse rows of another origin.

        Raises:
            ValueError: If the header is another one; names what differs.
        """
        text = file.read(_HEADER)
        try:
            content = parse_json(text)
        except ValueError:
            content = None
        if not isinstance(content, dict) or len(text) < _HEADER:
            raise ValueError(f"{self.path}: the header is damaged")
        other = [key for key, value in self._origin.items() if content.get(key) != value]
        if other:
            raise ValueError(f"{self.path} was made with another {' and another '.join(other)}")

    def _read_blocks(self, file: BinaryIO, size: int) -> None:
        """Read the entries of all whole blocks after the last one that is known."""
        while self._end < size:
            file.seek(self._end)
            head = file.read(_COUNT.size)
            magic, count = _COUNT.unpack(head) if len(head) == _COUNT.size else (_MAGIC, size)
            begin = self._end + _COUNT.size + count * _ENTRY + _DIGEST  # of the rows
            end = begin + count * 4 * self._width
            if magic == _MAGIC and end > size:
                log.info("%s: the last rows are incomplete and are computed again", self.path)
                break
            entries = file.read(count * _ENTRY) if magic == _MAGIC else b""
            if magic != _MAGIC or file.read(_DIGEST) != _digest(head, entries):
                self._log(f"{self.path} is damaged from byte {self._end} on")
                break
            for index in range(count):
                entry = entries[index * _ENTRY : (index + 1) * _ENTRY]
                self._entries[entry[:_NAME]] = begin + index * 4 * self._width, entry[_NAME:]
            self._end = end

    def _log(self, problem: str) -> None:
        if problem not in self._logged:
            self._logged.add(problem)
            if self._tell is not None:
                self._tell(problem)
            else:
                log.warning("%s; what it lacks is computed again", problem)


def _key(name: str) -> bytes:
    return blake2b(name.encode("utf-8", "surrogatepass"), digest_size=_NAME).digest()


def _digest(*parts: bytes) -> bytes:
    return blake2b(b"".join(parts), digest_size=_DIGEST).digest()


def _block(names: Sequence[str], values: npt.NDArray[np.float32]) -> Iterator[bytes]:
    """Yield the parts of a block of rows ``(N, D)``."""
    head = _COUNT.pack(_MAGIC, len(names))
    pairs = zip(map(_key, names), values, strict=True)
    entries = b"".join(key + _digest(key, row.tobytes()) for key, row in pairs)
    yield head
    yield entries
    yield _digest(head, entries)
    yield values.tobytes()
