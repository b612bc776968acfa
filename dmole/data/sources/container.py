"""The interface of every kind of data source: items, images and a version of its content."""

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
    """The items of one split in any kind of source. Can be pickled.

    Attributes:
        kind: Short name of the kind of source, for reports.
    """

    kind: ClassVar[str]

    @property
    @abstractmethod
    def address(self) -> str:
        """Name of the source in messages."""

    @property
    @abstractmethod
    def folder(self) -> Path:
        """Folder that image paths are relative to."""

    @property
    def published(self) -> bool:
        """Whether the data are published by third parties: repeated ids then get a suffix."""
        return False

    @property
    def prompt(self) -> str | None:
        """Default prompt template of the questions; None leaves them unchanged."""
        return None

    @property
    def shapes(self) -> tuple[str, ...]:
        """Names of the shapes that items may have; if empty, the first items determine it."""
        return ()

    @abstractmethod
    def items(self) -> Numbered:
        """Yield the items; every call reads them again.

        Raises:
            FileNotFoundError: If a file does not exist.
            ValueError: If the content is broken. The message names the address and the
                position.
        """

    @abstractmethod
    def version(self) -> tuple[object, ...]:
        """Return a value that changes whenever the content changes."""

    def images(self, root: Path) -> ImageFinder:
        """Return the finder of the images.

        Args:
            root: Folder that image paths are relative to.
        """
        return ImageRoot(root)


def text_version(paths: Iterable[Path]) -> tuple[object, ...]:
    """Return the paths and SHA-256 of text files; missing files are skipped.

    The content is read because a file can change while its size and time stay the same.
    """
    return tuple((str(path.absolute()), _digest(path)) for path in paths if path.is_file())


def archive_version(paths: Iterable[Path]) -> tuple[object, ...]:
    """Return paths, sizes, times and inodes of files that hold images.

    Such files are too large to be read at every start. The values include the time of the last
    inode change: unlike the modification time, no program can set it.
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
