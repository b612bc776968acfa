"""Items of webdataset archives: members of a tar file that share a name form one item."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from dmole.data.images import ImageRoot
from dmole.data.sample import EmbeddedImage, StoredImage
from dmole.data.shapes.webdataset import IMAGE_ENDINGS, member_item
from dmole.data.sources.container import Container, Numbered, archive_version
from dmole.storage.files import check_file

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_NAME = re.compile(r"tar:(\d+):(\d+):(\d+):(.*)", re.DOTALL)


@dataclass(frozen=True)
class TarShards(Container):
    """Tar files whose members of the same name form an item: ``000123.json``, ``000123.jpg``.

    Nothing is unpacked: an image is read from its position in the archive. See
    `dmole.data.shapes.member_item`.

    Args:
        pattern: The pattern or folder of the files.
        paths: The tar files in order.
    """

    pattern: str
    paths: tuple[Path, ...]
    kind: ClassVar[str] = "webdataset"

    @property
    def address(self) -> str:
        """The pattern or folder."""
        return self.pattern

    @property
    def folder(self) -> Path:
        """Folder of the first file."""
        return self.paths[0].parent

    def items(self) -> Numbered:
        """Yield an item for each name.

        Raises:
            ValueError: If a file is damaged or not a tar file, or the members form no item.
        """
        groups = (group for number in range(len(self.paths)) for group in self._groups(number))
        for index, group in enumerate(groups):
            yield index, self._item(group)

    def images(self, root: Path) -> TarImages:
        """Return the images in the archives."""
        return TarImages(root, self.paths)

    def version(self) -> tuple[object, ...]:
        """Return sizes and times of the files."""
        return archive_version(self.paths)

    def _groups(self, number: int) -> Iterator[_Group]:
        """Yield the members of one name; webdataset puts them next to each other."""
        path = self.paths[number]
        group: _Group | None = None
        try:
            check_file(path)
            with tarfile.open(path, "r:") as archive:
                for member in archive:
                    if not member.isreg():
                        continue
                    if member.sparse is not None:
                        raise tarfile.TarError(f"member {member.name} has holes")
                    key, ending = _split(member.name)
                    if group is None or group.key != key:
                        if group is not None:
                            yield group
                        group = _Group(path, key)
                    if ending.rpartition(".")[2] in IMAGE_ENDINGS:
                        name = f"tar:{number}:{member.offset_data}:{member.size}:{member.name}"
                        group.images[f"{key}.{ending}"] = name
                        group.members[ending] = b""
                    else:
                        content = archive.extractfile(member)
                        assert content is not None  # a regular member
                        group.members[ending] = content.read()
        except (tarfile.TarError, OSError, EOFError, MemoryError, OverflowError) as error:
            raise ValueError(f"{path}: damaged or no tar file: {error}") from error
        if group is not None:
            yield group

    def _item(self, group: _Group) -> Any:
        try:
            item = member_item(group.key, group.members)
        except ValueError as error:
            raise ValueError(f"{group.path}: {group.key}: {error}") from error
        images = item.get("images")
        if isinstance(images, list):
            item["images"] = [group.images.get(_path_of(image), image) for image in images]
        return item


@dataclass
class _Group:
    """The members of one item by ending, and the name of each image by its path.

    Images are not read; their content is left empty. The name holds the position in the archive.
    """

    path: Path
    key: str
    members: dict[str, bytes] = field(default_factory=dict)
    images: dict[str, str] = field(default_factory=dict)


def _path_of(image: Any) -> str:
    return str(image.get("path")) if isinstance(image, dict) else ""


class TarImages(ImageRoot):
    """Images in tar files; other names are files below a folder.

    Args:
        root: The folder.
        paths: The tar files.
    """

    def __init__(self, root: Path, paths: tuple[Path, ...]) -> None:
        super().__init__(root)
        self._paths = paths

    def locate(self, name: str) -> StoredImage:
        """Return the image with this name; see `ImageRoot.locate`."""
        match = _NAME.fullmatch(name)
        if match is None:
            return super().locate(name)
        path, offset, size = self._paths[int(match[1])], int(match[2]), int(match[3])
        return EmbeddedImage(f"{path}: {match[4]}", size, partial(_read, path, offset, size))


def find_shards(data_root: Path, address: str) -> TarShards | None:
    """Return the archives of a ``.tar`` file, a range such as ``a-{000..012}.tar``, or a folder.

    Returns:
        None if the address names something else.

    Raises:
        FileNotFoundError: If an archive of a range does not exist.
    """
    match = _RANGE.search(address)
    if match is not None and address.endswith(".tar"):
        numbers = range(int(match[1]), int(match[2]) + 1)
        names = [_RANGE.sub(f"{n:0{len(match[1])}d}", address, count=1) for n in numbers]
        paths = tuple(data_root / Path(name).expanduser() for name in names)
        for path in paths:
            if not path.is_file():
                raise FileNotFoundError(f"data file {path} does not exist")
        if not paths:
            raise ValueError(f"{address}: the range {match[0]} is empty")
        return TarShards(str(data_root / address), paths)
    path = data_root / Path(address).expanduser()
    if path.suffix == ".tar" and path.is_file():
        return TarShards(str(path), (path,))
    archives = tuple(sorted(path.glob("*.tar"))) if path.is_dir() else ()
    return TarShards(str(path), archives) if archives else None


def _split(name: str) -> tuple[str, str]:
    """Return the key of a member and its ending: all after the first dot of the file's name."""
    path = PurePosixPath(name)
    stem, _, ending = path.name.partition(".")
    return str(path.with_name(stem)) if stem else name, ending.lower()


def _read(path: Path, offset: int, size: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(size)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
