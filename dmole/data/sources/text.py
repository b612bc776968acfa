"""Items of text files: JSON, JSON lines, VLMEvalKit's TSV, meta files, and benchmark layouts."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmole.data.formats import Split
from dmole.data.images import ImageFinder, ImageRoot
from dmole.data.items import Source, read_json
from dmole.data.layout import Layout
from dmole.data.sources.container import Numbered, text_version
from dmole.data.streaming import stream_items

_LONGEST_CELL = 1 << 30  # characters; the limit of the csv module would refuse most images
_LONGEST_INDEX = 64  # characters of a cell that is an index rather than an image


@dataclass(frozen=True)
class JsonFile:
    """A ``.json`` file that holds a list, or a ``.jsonl`` file.

    Args:
        path: The file.
    """

    path: Path
    published: bool = False

    @property
    def address(self) -> str:
        """The path."""
        return str(self.path)

    @property
    def folder(self) -> Path:
        """Folder of the file."""
        return self.path.parent

    def items(self) -> Numbered:
        """Yield the items; see `stream_items`."""
        return stream_items(self.path)

    def images(self, root: Path) -> ImageFinder:
        """Return the folder of the images."""
        return ImageRoot(root)

    def version(self) -> tuple[object, ...]:
        """Return a digest of the file."""
        return text_version([self.path])


@dataclass(frozen=True)
class LayoutFiles(JsonFile):
    """The files of a published benchmark, in its layout.

    Args:
        path: The file or folder of the items.
        layout: How the items are read.
        split: Which split they are read for.
        side_files: Further files by name.
    """

    layout: Layout
    split: Split
    side_files: Mapping[str, Path]

    @property
    def folder(self) -> Path:
        """The folder of the items, or the one of their file."""
        return self.path.parent if self.path.is_file() else self.path

    def items(self) -> Numbered:
        """Yield the items as the layout reads them."""
        return self.layout.items(Source(self.path, self.split, self.side_files))

    def version(self) -> tuple[object, ...]:
        """Return a digest of the files and side files."""
        files = [self.path] if self.path.is_file() else sorted(self.path.iterdir())
        return text_version(path for path in (*files, *self.side_files.values()) if path.is_file())


@dataclass(frozen=True)
class MetaFile(JsonFile):
    """A meta file of InternVL: names of data sets with ``root``, ``annotation``, ``repeat_time``.

    Args:
        path: The meta file.
        data_root: Folder that ``root`` and ``annotation`` are relative to.

    Source:
        OpenGVLab/InternVL ``internvl/train/dataset.py``; gcd19/D-MoLE ``shell/dmole/*.json``.
    """

    data_root: Path

    @property
    def folder(self) -> Path:
        """The folder that each ``root`` is relative to."""
        return self.data_root

    def items(self) -> Numbered:
        """Yield the items of every annotation file, each file ``repeat_time`` times.

        Raises:
            FileNotFoundError: If an annotation file does not exist.
            ValueError: If an entry is malformed, or its ``length`` is not the number of items.
        """
        position = 0
        for name, entry in read_json(self.path).items():
            annotation, times = self._annotation(name, entry)
            count = sum(1 for _ in stream_items(annotation))
            if entry.get("length", count) != count:
                raise ValueError(
                    f"{self.path}: {name}: 'length' is {entry['length']!r}, "
                    f"but {annotation} holds {count} items"
                )
            for _ in range(times):
                for _, item in stream_items(annotation):
                    yield position, _below(item, str(entry.get("root", ".")))
                    position += 1

    def version(self) -> tuple[object, ...]:
        """Return a digest of the file and of the annotation files."""
        entries = read_json(self.path).values()
        annotations = [self.data_root / str(entry["annotation"]) for entry in entries]
        return text_version([self.path, *annotations])

    def _annotation(self, name: str, entry: Mapping[str, Any]) -> tuple[Path, int]:
        times = entry.get("repeat_time", 1)
        if isinstance(times, bool) or not isinstance(times, int) or times < 1:
            raise ValueError(f"{self.path}: {name}: 'repeat_time' must be 1 or more, got {times!r}")
        return self.data_root / str(entry["annotation"]), times


def is_meta(path: Path) -> bool:
    """Return whether a file is a meta file: an object of entries with an ``annotation``."""
    if path.suffix != ".json" or not path.is_file():
        return False
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        if file.read(64).lstrip()[:1] != "{":
            return False
    content = read_json(path)
    return bool(content) and all(
        isinstance(entry, dict) and "annotation" in entry for entry in content.values()
    )


def _below(item: Any, root: str) -> Any:
    """Return an item whose image names start with the folder of the entry."""
    if not isinstance(item, dict) or root in ("", ".", "./"):
        return item
    prefix = root.rstrip("/")
    changed = dict(item)
    for key in ("image", "images"):
        names = item.get(key)
        if isinstance(names, str) and names:
            changed[key] = f"{prefix}/{names}"
        elif isinstance(names, list):
            changed[key] = [f"{prefix}/{n}" if isinstance(n, str) else n for n in names]
    return changed


@dataclass(frozen=True)
class TsvFile(JsonFile):
    """A table of VLMEvalKit: a row an item, the first row names the columns.

    An ``image`` is base64, or the ``index`` of an earlier row whose image it shares. Empty cells
    are left out of the item.
    """

    def items(self) -> Numbered:
        """Yield the rows as objects of texts.

        Raises:
            ValueError: If the file is not UTF-8 text, a row has more or fewer cells than columns,
                or an image is the index of no earlier row.
        """
        images: dict[str, str] = {}
        for number, row in enumerate(self._rows()):
            item: dict[str, Any] = {key: cell for key, cell in row.items() if cell != ""}
            if "image" in item:
                item["image"] = self._image(number, item["image"], images)
                images[item.get("index", str(number))] = item["image"]
            yield number, item

    def _rows(self) -> Iterator[dict[str, str]]:
        csv.field_size_limit(_LONGEST_CELL)
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as file:
                table = csv.reader(file, delimiter="\t", strict=True)
                header = next(table, None)
                if header is None:
                    return
                repeated = sorted({name for name in header if header.count(name) > 1})
                if repeated:
                    raise ValueError(f"{self.path}: has two columns {repeated[0]!r}")
                for number, cells in enumerate(row for row in table if row):
                    if len(cells) != len(header):
                        raise ValueError(
                            f"{self.path}: item {number} has {len(cells)} cells, "
                            f"but there are {len(header)} columns"
                        )
                    yield dict(zip(header, cells, strict=True))
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.path}: is not UTF-8 text: {error}") from error
        except csv.Error as error:
            raise ValueError(f"{self.path}: broken table at line {table.line_num}: {error}") from error

    def _image(self, number: int, cell: str, images: Mapping[str, str]) -> str:
        if len(cell) > _LONGEST_INDEX:
            return cell if cell.startswith("data:") else f"data:;base64,{cell}"
        if cell not in images:
            raise ValueError(
                f"{self.path}: item {number}: 'image' {cell!r} is neither base64 "
                "nor the index of an earlier row with an image"
            )
        return images[cell]
