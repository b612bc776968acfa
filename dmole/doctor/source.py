"""A source under examination and its items, valid or not."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from dmole.data.formats import Split, sample_id
from dmole.data.images import name_of
from dmole.data.paths import alternatives
from dmole.data.sample import FileImage, Sample, StoredImage
from dmole.data.shapes import SHAPES, Conversation, Shape
from dmole.data.shapes.pictures import read_images
from dmole.data.shapes.recognition import shapes_of
from dmole.data.shapes.unread import unread_keys
from dmole.data.source import DataSource, address_of, find_source
from dmole.data.sources.generated import GeneratedSource
from dmole.data.task import Task
from dmole.doctor.findings import Finding
from dmole.messages import one_line

Tick = Callable[[int], None]
"""Progress callback: takes the number of items read since the last call."""

_TICK = 500  # items
_LONGEST = 400  # characters of a message, which may quote the file


@dataclass(frozen=True)
class CheckedSource:
    """The data of a task and split, whether or not they can be opened.

    Args:
        task: The task.
        split: The split.
        address: The file, folder or address, for reports.
        data: The data; None if they cannot be opened.
        error: Reason why they cannot be opened.
    """

    task: Task
    split: Split
    address: str
    data: DataSource | None = None
    error: str | None = None

    @classmethod
    def of(cls, task: Task, split: Split, data_root: Path) -> CheckedSource | GeneratedSource:
        """Return the data of a split; the address of a missing file is the first alternative.

        Generated samples need no examination and are returned as they are.
        """
        try:
            data = find_source(task, split, data_root)
        except (ValueError, OSError) as error:
            address = address_of(task, split)
            if "://" not in address:
                address = str(data_root / Path(alternatives(address)[0]).expanduser())
            return cls(task, split, address, error=str(error))
        if isinstance(data, GeneratedSource):
            return data
        return cls(task, split, data.address, data)

    @property
    def size(self) -> int:
        """Size of the file in bytes, 0 for other sources; large files are examined first."""
        path = Path(self.address)
        return path.stat().st_size if path.is_file() else 0

    @property
    def kind(self) -> str | None:
        """Name of the kind of source, None if it cannot be opened."""
        return None if self.data is None else self.data.container.kind

    def without_suffix(self) -> CheckedSource:
        """Return the same data without the prompt suffix."""
        task = replace(self.task, prompt_suffix="")
        data = self.data and replace(self.data, task=task)
        return replace(self, task=task, data=data)

    def finding(
        self, kind: str, message: str, item: int | None = None, id: str | None = None
    ) -> Finding:
        """Return a finding in this file."""
        name = None if id is None else one_line(id)
        text = one_line(message).removeprefix(f"{one_line(self.address)}: ")
        if len(text) > _LONGEST:
            text = f"{text[: _LONGEST - 3]}..."
        return Finding(kind, text, self.task.name, self.split, one_line(self.address), item, name)

    def items(self, tick: Tick | None = None) -> Iterator[tuple[int, Any]]:
        """Yield position and content of each item of any type, up to the first broken one.

        Raises:
            ValueError: If the file, or a side file, is broken.
            OSError: If one cannot be read.
        """
        if self.data is None:
            raise ValueError(self.error)
        index = -1
        for index, item in self.data.items():
            yield index, item
            if tick is not None and index % _TICK == _TICK - 1:
                tick(_TICK)
        if tick is not None:
            tick((index + 1) % _TICK)

    def valid_items(self, tick: Tick | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the items that are objects; stop without an error if the file is broken.

        The pass over the texts reports the errors that this method skips.
        """
        items = self.items(tick)
        while True:
            try:
                index, item = next(items)
            except (StopIteration, ValueError, OSError):
                return
            if isinstance(item, dict):
                yield index, item

    def id_of(self, item: Any, index: int) -> str:
        """Return the id of an item, or its position if it is not an object."""
        return sample_id(item, index) if isinstance(item, dict) else str(index)


class Examined(NamedTuple):
    """The readable content of an item.

    Args:
        names: The names of its images.
        sample: Its sample, with images that may be missing; None if the item is malformed.
        error: Description of the malformation.
        unread: Keys of the item that no reader uses.
    """

    names: Sequence[str]
    sample: Sample | None
    error: str | None = None
    unread: tuple[str, ...] = ()


class TolerantReader:
    """Reads items whose images may be missing, and describes malformed ones.

    Args:
        source: The source of the items.
        others: Keys that metric and prompt of the task read, to find the keys that no reader uses;
            None looks for none.

    Attributes:
        shapes: The shapes that items may have.
        ambiguous: Error message if the first items match several shapes, else None.
    """

    def __init__(self, source: CheckedSource, others: Collection[str] | None = None) -> None:
        self._others = others
        self.ambiguous: str | None = None
        self.shapes = self._recognise(source)
        if source.data is not None:
            self._images = source.data.images()
            self._reader = source.data.reader(self.shapes, self._images)

    @property
    def shape(self) -> str | None:
        """Name of the shape, None if there is none."""
        return " or ".join(shape.name for shape in self.shapes) or None

    def examine(self, item: dict[str, Any], index: int) -> Examined:
        """Return the readable content of an item; its images are not checked."""
        try:
            conversation = self._reader.parse(item)
        except ValueError as error:
            return Examined(_names(item), None, str(error))
        names = [name_of(image) for image in conversation.images]
        images = [FileImage(Path(name)) for name in names]
        sample = self._reader.sample(conversation, images, index)
        return Examined(names, sample, None, self._unread(item, conversation))

    def _unread(self, item: dict[str, Any], conversation: Conversation) -> tuple[str, ...]:
        if self._others is None:
            return ()
        shape = self._reader.shape_of(item)
        return tuple(unread_keys(item, conversation, shape, self._others))

    def images(self, names: Sequence[str]) -> Iterator[StoredImage | tuple[str, str]]:
        """Yield each image of an item, or the kind and message of the finding about it."""
        for name in names:
            try:
                yield self._images.find(name)
            except FileNotFoundError as error:
                yield "missing_image", str(error)
            except ValueError as error:
                yield "image_path", str(error)
            except OSError as error:  # the name is too long, or a folder is not readable
                yield "unreadable_image", f"cannot read image {name!r}: {error.strerror}"

    def _recognise(self, source: CheckedSource) -> tuple[Shape, ...]:
        """Return the shape of the first item that has one; items of other shapes are malformed."""
        if source.data is None:
            return ()
        if source.data.container.shapes:
            return source.data.shapes()
        shaped = [item for item in source.data.first_items() if shapes_of(item)]
        if not shaped:
            return tuple(SHAPES.values())
        common = [shape for shape in shapes_of(shaped[0]) if all(map(shape.matches, shaped))]
        if len(common) > 1:
            described = " and ".join(f"{shape.name!r} ({shape.keys})" for shape in common)
            self.ambiguous = f"the items have more than one shape: {described}"
        return tuple(common or shapes_of(shaped[0]))[:1]


def _names(item: dict[str, Any]) -> list[str]:
    """Return the names of the images of a malformed item, if they can be read."""
    try:
        return [name_of(image) for image in read_images(item)]
    except ValueError:
        return []
