"""One source to be examined, and its items as they come."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from dmole.data.formats import Split, sample_id
from dmole.data.images import name_of
from dmole.data.paths import alternatives
from dmole.data.sample import FileImage, Sample, StoredImage
from dmole.data.shapes import SHAPES, Shape
from dmole.data.shapes.pictures import read_images
from dmole.data.shapes.recognition import shapes_of
from dmole.data.source import DataSource, address_of, find_source
from dmole.data.sources.generated import GeneratedSource
from dmole.data.task import Task
from dmole.doctor.findings import Finding
from dmole.messages import one_line

Tick = Callable[[int], None]
"""Progress callback: takes the number of items read since the last call."""

_TICK = 500  # items
_LONGEST = 400  # characters of a message: it may quote what the file holds


@dataclass(frozen=True)
class CheckedSource:
    """The data of a task and split.

    Args:
        task: The task.
        split: What the data are for.
        address: The file, folder or address, for reports.
        data: The data; None where they cannot be opened at all.
        error: Why they cannot be opened.
    """

    task: Task
    split: Split
    address: str
    data: DataSource | None = None
    error: str | None = None

    @classmethod
    def of(cls, task: Task, split: Split, data_root: Path) -> CheckedSource | GeneratedSource:
        """Return the data of a task; for a missing file, the one that was looked for first.

        There is nothing to examine about generated samples.
        """
        try:
            found = find_source(task, split, data_root)
        except (ValueError, OSError) as error:
            address = address_of(task, split)
            if "://" not in address:
                address = str(data_root / Path(alternatives(address)[0]).expanduser())
            return cls(task, split, address, error=str(error))
        if isinstance(found, GeneratedSource):
            return found
        return cls(task, split, found.address, found)

    @property
    def size(self) -> int:
        """Bytes of the file, 0 where it is none: what takes long is examined first."""
        path = Path(self.address)
        return path.stat().st_size if path.is_file() else 0

    @property
    def kind(self) -> str | None:
        """Name of the kind of source, None where it cannot be opened."""
        return None if self.data is None else self.data.container.kind

    def without_suffix(self) -> CheckedSource:
        """Return the same data with nothing put after the questions."""
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
        """Yield position and content of each item, whatever it is, up to the first broken one.

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
        """Yield the items that are objects; end quietly where the file is broken.

        For the passes that come after the one over the texts, which reports what is wrong.
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
        """Return the id of an item, its position where it is no object."""
        return sample_id(item, index) if isinstance(item, dict) else str(index)


class Examined(NamedTuple):
    """What could be read of an item.

    Args:
        names: The texts that stand for its images.
        sample: Its sample, with images that need not exist; None where it is malformed.
        error: Why it is malformed.
    """

    names: Sequence[str]
    sample: Sample | None
    error: str | None = None


class TolerantReader:
    """Reads items whose images may be missing, and tells what is wrong with the others.

    Args:
        source: Where the items are from.

    Attributes:
        shapes: The shapes that items may have.
        ambiguous: Why the first items are of no one shape, None where they are.
    """

    def __init__(self, source: CheckedSource) -> None:
        self.ambiguous: str | None = None
        self.shapes = self._recognise(source)
        if source.data is not None:
            self._images = source.data.images()
            self._reader = source.data.reader(self.shapes, self._images)

    @property
    def shape(self) -> str | None:
        """Name of the shape, None where there is none."""
        return " or ".join(shape.name for shape in self.shapes) or None

    def examine(self, item: dict[str, Any], index: int) -> Examined:
        """Return what can be read of an item; its images are not looked for."""
        try:
            conversation = self._reader.parse(item)
        except ValueError as error:
            return Examined(_names(item), None, str(error))
        names = [name_of(image) for image in conversation.images]
        images = [FileImage(Path(name)) for name in names]
        return Examined(names, self._reader.sample(conversation, images, index))

    def images(self, names: Sequence[str]) -> Iterator[StoredImage | tuple[str, str]]:
        """Yield each image of an item, or the kind of finding and message that it is instead."""
        for name in names:
            try:
                yield self._images.find(name)
            except FileNotFoundError as error:
                yield "missing_image", str(error)
            except ValueError as error:
                yield "image_path", str(error)
            except OSError as error:  # a name too long, a folder that may not be read
                yield "unreadable_image", f"cannot read image {name!r}: {error.strerror}"

    def _recognise(self, source: CheckedSource) -> tuple[Shape, ...]:
        """Return the shape of the first item that has one: others are malformed, one by one."""
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
    """Return the texts that stand for the images of a malformed item, as far as they are clear."""
    try:
        return [name_of(image) for image in read_images(item)]
    except ValueError:
        return []
