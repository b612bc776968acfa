"""What every kind of data source gives: items, images and a version of its content."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from dmole.data.images import ImageFinder, ImageRoot

Numbered = Iterator[tuple[int, Any]]
"""Contents of items with their positions, counted from 0."""

_PIECE = 1 << 20


class Container(ABC):
    """The items of one split, wherever they lie. Can be pickled.

    Attributes:
        kind: What it is, in a word or two for reports.
    """

    kind: ClassVar[str]

    @property
    @abstractmethod
    def address(self) -> str:
        """What messages call it."""

    @property
    @abstractmethod
    def folder(self) -> Path:
        """Folder that image paths start from."""

    @property
    def published(self) -> bool:
        """Whether others wrote it, so that ids may repeat; those get a number."""
        return False

    @property
    def prompt(self) -> str | None:
        """Wording of the questions where the task does not say; None leaves them as they are."""
        return None

    @property
    def shapes(self) -> tuple[str, ...]:
        """Names of the shapes that items may have; if empty, the first items tell the one."""
        return ()

    @abstractmethod
    def items(self) -> Numbered:
        """Yield the items, read anew by every call.

        Raises:
            FileNotFoundError: If a file does not exist.
            ValueError: If the content is broken. The message names the address and the place.
        """

    @abstractmethod
    def version(self) -> tuple[object, ...]:
        """Return what differs whenever the content differs."""

    def images(self, root: Path) -> ImageFinder:
        """Return where the images are found.

        Args:
            root: Folder that image paths start from.
        """
        return ImageRoot(root)


def text_version(paths: Iterable[Path]) -> tuple[object, ...]:
    """Return the paths and SHA-256 of text files; who reads them reports those that are missing.

    The content is read, since a file can change without a change of its size or time.
    """
    return tuple((str(path.absolute()), _digest(path)) for path in paths if path.is_file())


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
