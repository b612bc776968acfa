"""Items that are the rows of a table, and images in its cells."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dmole.data.images import ImageFinder, ImageRoot
from dmole.data.sample import EmbeddedImage, StoredImage
from dmole.data.sources.container import Container, Numbered, archive_version

if TYPE_CHECKING:
    from datasets import Dataset

IMAGE_KEYS = ("image", "images")
_BATCH = 256  # rows read at a time
_NAME = re.compile(r"row:(\d+):(\d+):(\d+):(.*)", re.DOTALL)


@dataclass(frozen=True)
class RowTable(Container):
    """A table whose rows are items, mapped into memory.

    Columns of images (bytes, a struct of ``bytes`` and ``path``, or a list of these) are not
    read with the row: a name replaces each image, and its bytes are read when it is decoded.

    Args:
        origin: The folder or address of the table.
        root: Folder that image paths are relative to.
        rows: The table.
        columns: Renamed columns; see `dmole.data.task.Task`.
    """

    origin: str
    root: Path
    rows: Dataset = field(compare=False)
    columns: Mapping[str, str] = field(default_factory=dict)
    kind: ClassVar[str] = "table"

    @property
    def address(self) -> str:
        """The folder or address."""
        return self.origin

    @property
    def folder(self) -> Path:
        """Folder that image paths are relative to."""
        return self.root

    def items(self) -> Numbered:
        """Yield the rows as objects.

        Raises:
            ValueError: If a column holds images that no reader uses.
        """
        start = 0
        for table in self._arrow().iter(batch_size=_BATCH):
            cells = {name: _cells(table, name, start) for name in table.column_names}
            for position, row in enumerate(zip(*cells.values(), strict=True)):
                yield start + position, dict(zip(cells, row, strict=True))
            start += len(table)

    def images(self, root: Path) -> ImageFinder:
        """Return the finder of images in the rows and of files that the rows name."""
        return RowImages(root, self)

    def version(self) -> tuple[object, ...]:
        """Return sizes and times of the files that hold the rows."""
        files = (Path(file["filename"]) for file in self.rows.cache_files)
        return (self.address, len(self.rows), *archive_version(files))

    def read_image(self, row: int, column: str, position: int) -> bytes:
        """Return the bytes of an image.

        Args:
            row: Number of the row.
            column: Name of the column.
            position: Index of the image if the column holds lists.
        """
        cell = self._arrow()[row].column(column)[0]
        if _is_list(cell.type):
            cell = cell[position]
        content: bytes = (cell["bytes"] if _is_struct(cell.type) else cell).as_py()
        return content

    def check_columns(self) -> None:
        """Reject image columns that no reader uses.

        Raises:
            ValueError: If a column of images is not named ``image`` or ``images``.
        """
        taken = {self.columns.get(key, key) for key in IMAGE_KEYS}
        for name, kind in zip(*_schema(self.rows), strict=True):
            if _holds_images(kind) and name not in taken:
                raise ValueError(
                    f"{self.address}: column {name!r} holds images, but only 'image' or 'images' "
                    f"is read; the task can say columns: {{image: {name}}}"
                )

    def _arrow(self) -> Any:
        return self.rows.with_format("arrow")


class RowImages(ImageRoot):
    """Images in the rows of a table; other names are files below a folder.

    Args:
        root: The folder.
        table: The table.
    """

    def __init__(self, root: Path, table: RowTable) -> None:
        super().__init__(root)
        self._table = table

    def locate(self, name: str) -> StoredImage:
        """Return the image with this name; see `ImageRoot.locate`."""
        match = _NAME.fullmatch(name)
        if match is None:
            return super().locate(name)
        row, position, size, column = int(match[1]), int(match[2]), int(match[3]), match[4]
        shown = f"{self._table.address} row {row} column {column!r} image {position}"
        return EmbeddedImage(shown, size, partial(self._table.read_image, row, column, position))


def _schema(rows: Dataset) -> tuple[list[str], list[Any]]:
    schema = rows.features.arrow_schema
    return schema.names, schema.types


def _holds_images(kind: Any) -> bool:
    return _is_image(kind.value_type) if _is_list(kind) else _is_image(kind)


def _is_image(kind: Any) -> bool:
    import pyarrow as pa

    if _is_struct(kind):
        fields = [kind.field(i) for i in range(kind.num_fields)]
        return any(f.name == "bytes" and _is_image(f.type) for f in fields)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _is_struct(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_struct(kind))


def _cells(table: Any, name: str, start: int) -> list[Any]:
    """Return the values of a column; images are replaced by their names."""
    import pyarrow.compute as pc

    column = table.column(name)
    if not _holds_images(column.type):
        return list(column.to_pylist())
    if not _is_list(column.type):
        entries = zip(*_sizes_and_paths(column), strict=True)
        return [_reference(start + i, 0, name, *entry) for i, entry in enumerate(entries)]
    flat: Iterator[tuple[Any, Any]] = zip(*_sizes_and_paths(pc.list_flatten(column)), strict=True)
    return [
        [_reference(start + i, position, name, *next(flat)) for position in range(count or 0)]
        for i, count in enumerate(pc.list_value_length(column).to_pylist())
    ]


def _sizes_and_paths(column: Any) -> tuple[list[Any], list[Any]]:
    """Return the size of each image in bytes and its path; None where one is missing."""
    import pyarrow.compute as pc

    if not _is_struct(column.type):
        return pc.binary_length(column).to_pylist(), [None] * len(column)
    sizes = pc.binary_length(pc.struct_field(column, "bytes")).to_pylist()
    has_path = any(field.name == "path" for field in column.type)
    paths = pc.struct_field(column, "path").to_pylist() if has_path else [None] * len(column)
    return sizes, paths


def _reference(row: int, position: int, column: str, size: int | None, path: str | None) -> Any:
    if size is not None:
        return f"row:{row}:{position}:{size}:{column}"
    return path
