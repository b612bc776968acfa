"""What every kind of data source gives: items, images and a version of its content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from dmole.data.images import ImageFinder

Numbered = Iterator[tuple[int, Any]]
"""Contents of items with their positions, counted from 0."""

_PIECE = 1 << 20


class Container(Protocol):
    """The items of one split, wherever they lie. Can be pickled.

    Attributes:
        address: What messages call it: a file, a folder or an address.
        folder: Folder that image paths start from, unless the task names one.
        published: Whether others wrote it and ids may repeat.
    """

    address: str
    folder: Path
    published: bool

    def items(self) -> Numbered:
        """Yield the items, read anew by every call.

        Raises:
            FileNotFoundError: If a file does not exist.
            ValueError: If the content is broken. The message names the address and the place.
        """
        ...

    def images(self, root: Path) -> ImageFinder:
        """Return where the images are found.

        Args:
            root: Folder that image paths start from.
        """
        ...

    def version(self) -> tuple[object, ...]:
        """Return what differs whenever the content differs."""
        ...


def text_version(paths: Iterable[Path]) -> tuple[object, ...]:
    """Return the paths and SHA-256 of text files.

    The content is read, since a file can change without a change of its size or time.
    """
    return tuple((str(path.absolute()), _digest(path)) for path in paths)


def archive_version(paths: Iterable[Path]) -> tuple[object, ...]:
    """Return paths, sizes, times and inodes of files that hold images.

    They are too large to be read at every start. The time of the last change of the inode is among
    the values: unlike the time of modification, no program can set it.
    """
    stats = ((path, path.stat()) for path in paths)
    return tuple(
        (str(path.absolute()), s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino)
        for path, s in stats
    )


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()
