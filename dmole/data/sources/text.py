"""Items of text files: JSON, JSON lines, VLMEvalKit's TSV, meta files, and benchmark layouts."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from dmole.data.formats import Split
from dmole.data.items import SourceFiles
from dmole.data.layout import Layout
from dmole.data.shapes import MetaPart, is_meta, meta_parts, named_rows, table_items
from dmole.data.sources.container import Container, Numbered, text_version
from dmole.data.streaming import stream_items
from dmole.storage.files import open_file, read_json

_LONGEST_CELL = 1 << 30  # characters; the limit of the csv module would refuse most images
READABLE = ("conversations", "question")
"""The shapes that readers of published files yield."""


@dataclass(frozen=True)
class JsonFile(Container):
    """A ``.json`` file that holds a list, or a ``.jsonl`` file.

    Args:
        path: The file.
    """

    path: Path
    kind: ClassVar[str] = "JSON"

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

    def version(self) -> tuple[object, ...]:
        """Return a digest of the file."""
        return text_version([self.path])


@dataclass(frozen=True)
class LayoutFiles(JsonFile):
    """The files of a published benchmark, in its layout.

    Args:
        path: The file or folder of the items.
        layout: Reads the items.
        split: The split.
        side_files: Further files by name.
    """

    layout: Layout
    split: Split
    side_files: Mapping[str, Path]
    kind: ClassVar[str] = "layout"

    @property
    def published(self) -> bool:
        """Whether ids may repeat."""
        return self.layout.published

    @property
    def prompt(self) -> str | None:
        """Default prompt template of the layout."""
        return self.layout.prompt

    @property
    def shapes(self) -> tuple[str, ...]:
        """Names of the shapes that layouts yield."""
        return READABLE

    @property
    def folder(self) -> Path:
        """The folder of the items, or the folder of their file."""
        return self.path.parent if self.path.is_file() else self.path

    def items(self) -> Numbered:
        """Yield the items as the layout reads them."""
        return self.layout.items(SourceFiles(self.path, self.split, self.side_files))

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
        wording: Default prompt template of the questions.

    Source:
        OpenGVLab/InternVL ``internvl/train/dataset.py``; gcd19/D-MoLE ``shell/dmole/*.json``.
    """

    data_root: Path
    wording: str | None = None
    kind: ClassVar[str] = "meta file"

    @property
    def prompt(self) -> str | None:
        """Default prompt template of the layout."""
        return self.wording

    @property
    def published(self) -> bool:
        """Whether ids may repeat: they do if a file is read several times."""
        return True

    @property
    def shapes(self) -> tuple[str, ...]:
        """Names of the shapes that annotation files may hold."""
        return READABLE

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
        for part in self._parts():
            annotation = self.data_root / part.annotation
            count = sum(1 for _ in stream_items(annotation))
            if part.length not in (None, count):
                raise ValueError(
                    f"{self.path}: {part.name}: 'length' is {part.length}, "
                    f"but {annotation} holds {count} items"
                )
            for _ in range(part.repeat):
                for _, item in stream_items(annotation):
                    yield position, _below(item, part.root)
                    position += 1

    def version(self) -> tuple[object, ...]:
        """Return a digest of the file and of the annotation files."""
        annotations = [self.data_root / part.annotation for part in self._parts()]
        return text_version([self.path, *annotations])

    def _parts(self) -> list[MetaPart]:
        try:
            return list(meta_parts(read_json(self.path, limit=None)))
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from error


def is_meta_file(path: Path) -> bool:
    """Return whether a file is a meta file; other files are not read as a whole."""
    if path.suffix != ".json" or not path.is_file():
        return False
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        if file.read(64).lstrip()[:1] != "{":
            return False
    return is_meta(read_json(path, limit=None))


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
    """A table of VLMEvalKit: one item per row; the first row names the columns.

    Args:
        path: The file.
        options_in_text: Whether the text of a question ends with its options.
    """

    options_in_text: bool = True
    kind: ClassVar[str] = "VLMEvalKit table"

    @property
    def shapes(self) -> tuple[str, ...]:
        """The rows become questions."""
        return ("question",)

    def items(self) -> Numbered:
        """Yield the rows as questions; see `dmole.data.shapes.table_items`.

        Raises:
            ValueError: If the file is not UTF-8 text or no table, or a row is malformed.
        """
        needed = named_rows(self.rows())
        items = table_items(self.rows(), options_in_text=self.options_in_text, needed=needed)
        try:
            yield from enumerate(items)
        except ValueError as error:
            prefix = f"{self.path}: "
            raise ValueError(f"{prefix}{str(error).removeprefix(prefix)}") from error

    def rows(self) -> Iterator[dict[str, str]]:
        """Yield the rows by column, as they are in the file.

        Raises:
            ValueError: If the file is not UTF-8 text or no table.
        """
        csv.field_size_limit(_LONGEST_CELL)
        line = 0
        try:
            with io.TextIOWrapper(open_file(self.path), encoding="utf-8-sig", newline="") as file:
                table = csv.reader(file, delimiter="\t", strict=True)
                header = next(table, [])
                repeated = sorted({name for name in header if header.count(name) > 1})
                if repeated:
                    raise ValueError(f"{self.path}: has two columns {repeated[0]!r}")
                for number, cells in enumerate(row for row in table if row):
                    line = table.line_num
                    if len(cells) != len(header):
                        raise ValueError(
                            f"{self.path}: row {number} has {len(cells)} cells, "
                            f"but there are {len(header)} columns"
                        )
                    yield dict(zip(header, cells, strict=True))
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.path}: is not UTF-8 text: {error}") from error
        except csv.Error as error:
            raise ValueError(f"{self.path}: broken table after line {line}: {error}") from error
