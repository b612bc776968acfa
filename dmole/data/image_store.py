"""Where results for images are kept: in the memory of a process, or in a folder."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import SystemRandom
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from dmole.data.bounded_cache import BoundedCache
from dmole.data.cache_folder import cache_folder
from dmole.messages import one_line
from dmole.storage.files import parse_json
from dmole.storage.tensors import read_tensor_file, write_tensor_file

log = logging.getLogger("dmole")

Entry = Mapping[str, Any]
"""What an image processor returns for the images of one sample: tensors and nested lists.

Or the tensors of an image by the vision encoder.
"""

_VALUES = "values"  # all names in their order, with what is no tensor, as JSON
_FOLDER = re.compile(r"[0-9a-f]{2}")
_FILE = re.compile(r"[0-9a-f]{40}\.safetensors")
_SHARE = 20  # a process looks at the folder again after writing this part of the limit


@dataclass(frozen=True)
class CacheNames:
    """What the settings of a cache are called, in messages.

    Args:
        kind: Setting of the kind of cache.
        limit: Setting of the number of bytes.
        folder: Setting of the folder.
        place: Name of the folder in the cache folder, if none is set.
        ended: Begin of the message that nothing more can be written.
    """

    kind: str = "data.cache_images"
    limit: str = "data.cache_bytes"
    folder: str = "data.cache_folder"
    place: str = "images"
    ended: str = "no further processed images are kept in"


class ImageStore(Protocol):
    """Keeps entries by a digest of everything they depend on."""

    def get(self, key: str) -> Entry | None:
        """Return an entry, which must not be changed; None if it is not there."""
        ...

    def put(self, key: str, entry: Entry) -> None:
        """Keep an entry."""
        ...


class MemoryStore:
    """Entries in the memory of a process; each data worker has its own.

    Args:
        limit: Largest number of bytes.
    """

    def __init__(self, limit: int) -> None:
        self._entries: BoundedCache[str, Entry] = BoundedCache(limit)

    def get(self, key: str) -> Entry | None:
        """Return an entry; None if it is not there."""
        return self._entries.get(key)

    def put(self, key: str, entry: Entry) -> None:
        """Keep an entry."""
        self._entries.put(key, entry, sum(tensor.nbytes for tensor in _tensors(entry).values()))


class FolderStore:
    """Entries as safetensors files in a folder that processes and runs share.

    A file appears whole or not at all, and a damaged one is made again. If the files exceed the
    limit, files chosen at random are deleted; those that are no entries stay. If a file cannot be
    written, no further one is.

    Args:
        folder: The folder; it is made.
        limit: Number of bytes above which files are deleted; each process that writes may exceed
            it by a twentieth.
        names: What the settings are called.

    Raises:
        ValueError: If the folder cannot be made; names it.
    """

    def __init__(self, folder: Path, limit: int, names: CacheNames = CacheNames()) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror or error
            raise ValueError(f"{names.folder} {folder} cannot be made: {reason}") from error
        self._folder = folder
        self._ended = names.ended
        self._limit = limit
        self._unseen: int | None = None  # bytes written since the last look at the folder
        # workers share it, so that only one of them warns
        self._broken = torch.zeros((), dtype=torch.bool).share_memory_()  # type: ignore[no-untyped-call]

    def get(self, key: str) -> Entry | None:
        """Return an entry; None if its file is missing or damaged."""
        path = self._path(key)
        if not path.exists():
            return None
        try:
            tensors = read_tensor_file(path, finite=False)
            values = parse_json(bytes(tensors.pop(_VALUES).numpy()))
            return {name: tensors.get(name, value) for name, value in values.items()}
        except (OSError, ValueError, KeyError, AttributeError) as error:
            if path.exists():  # else another process has deleted it
                log.warning("%s is damaged and is made again: %s", path, one_line(error))
            return None

    def put(self, key: str, entry: Entry) -> None:
        """Write the file of an entry, unless an earlier one could not be written."""
        if self._broken:
            return
        tensors = _tensors(entry)
        values = {name: None if name in tensors else value for name, value in entry.items()}
        text = np.frombuffer(json.dumps(values).encode(), np.uint8).copy()
        content = {**tensors, _VALUES: torch.from_numpy(text)}
        size = sum(tensor.nbytes for tensor in content.values())
        if size > self._limit:
            return
        try:
            self._make_room(size)
            write_tensor_file(self._path(key), content, flush=False)
        except OSError as error:
            self._broken.fill_(True)
            log.warning(
                "%s %s: %s",
                *(self._ended, self._folder, error.strerror or one_line(error)),
            )

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.safetensors"

    def _make_room(self, size: int) -> None:
        """Delete files if the folder is full; look at it only now and then."""
        if self._unseen is not None and self._unseen + size <= self._limit // _SHARE:
            self._unseen += size
            return
        self._unseen = size
        files = list(self._files())
        total = sum(number for _, number in files) + size
        if total <= self._limit:
            return
        SystemRandom().shuffle(files)
        while files and total > self._limit * (1 - 1 / _SHARE):
            path, number = files.pop()
            Path(path).unlink(missing_ok=True)
            total -= number

    def _files(self) -> list[tuple[str, int]]:
        """Return the paths and sizes of all files; those that vanish meanwhile are left out."""
        found = []
        for folder in self._folder.iterdir():
            if not _FOLDER.fullmatch(folder.name) or not folder.is_dir():
                continue
            for entry in os.scandir(folder):
                if _FILE.fullmatch(entry.name):
                    try:
                        found.append((entry.path, entry.stat(follow_symlinks=False).st_size))
                    except FileNotFoundError:
                        continue
        return found


@dataclass(frozen=True)
class ImageCache:
    """Whether and where results for images are kept.

    Args:
        kind: ``off``, which YAML reads as false, ``ram`` or ``disk``.
        limit: Number of bytes that are kept.
        folder: The folder for ``disk``; None takes one in the cache folder.
        names: What the settings are called.

    Raises:
        ValueError: If the kind is another one, or the limit is not positive.
    """

    kind: str | bool
    limit: int
    folder: str | None
    names: CacheNames = CacheNames()

    def __post_init__(self) -> None:
        """Check kind and limit."""
        if self.kind not in (False, "off", "ram", "disk"):
            raise ValueError(f"{self.names.kind} must be off, ram or disk, got {self.kind!r}")
        if self.limit < 1:
            raise ValueError(f"{self.names.limit} must be at least 1, got {self.limit}")

    def open(self) -> ImageStore | None:
        """Return the store; None if nothing is kept.

        Raises:
            ValueError: If the folder cannot be made.
        """
        if self.kind == "ram":
            return MemoryStore(self.limit)
        if self.kind == "disk":
            folder = Path(self.folder) if self.folder else cache_folder() / self.names.place
            return FolderStore(folder, self.limit, self.names)
        return None


def _tensors(entry: Entry) -> dict[str, Tensor]:
    return {name: value for name, value in entry.items() if isinstance(value, Tensor)}
