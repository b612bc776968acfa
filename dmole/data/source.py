"""Opens the data of a task, for all kinds of sources and all shapes of items."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from dmole._moved import moved_name
from dmole.data.address import Address, limited
from dmole.data.cache import CacheEntry
from dmole.data.formats import ItemReader, Split, sample_id
from dmole.data.images import ImageFinder, TreatedImages, name_of
from dmole.data.paths import find_path
from dmole.data.prompts import apply_prompt
from dmole.data.sample_errors import item_error
from dmole.data.sequences import Row, SampleList, Samples, unique_samples
from dmole.data.shapes import SHAPES, Shape, recognise
from dmole.data.sources.container import Container, Numbered
from dmole.data.sources.generated import GeneratedSource, is_generated
from dmole.data.sources.kinds import find_container
from dmole.data.streaming import kind_of
from dmole.data.task import Task

IN_MEMORY = 10_000
"""Maximum number of samples held as objects; larger sources are memory-mapped."""
IN_MEMORY_CHARACTERS = 1 << 26
"""Maximum total length of the image names held as objects; data URIs count as names."""

_FIRST = 32  # items that determine the shape


def open_source(task: Task, split: Split, data_root: Path) -> Samples:
    """Return all samples of a split of a task.

    More than `IN_MEMORY` samples are written to the cache folder and mapped into memory.
    Image files must exist but are not opened. Repeated ids in a published file get a suffix:
    ``7``, ``7#2``, ``7#3``.

    Args:
        task: The task.
        split: The split to open.
        data_root: Folder that paths are relative to.

    Raises:
        FileNotFoundError: If a file or an image does not exist.
        ValueError: If the content is malformed or empty, two items have the same id, or the cache
            cannot be written. The message is one line that names the source and the item.
    """
    return find_source(task, split, data_root).samples()


def find_source(task: Task, split: Split, data_root: Path) -> DataSource | GeneratedSource:
    """Find the data of a split of a task without reading the items.

    The arguments are those of `open_source`.

    Raises:
        FileNotFoundError: If a file or folder is missing.
        ValueError: If the task or the address is malformed, or a table cannot be opened.
    """
    address = Address.of(address_of(task, split), data_root, task.limit)
    if is_generated(address.base):
        return GeneratedSource(task, split, address)
    container = find_container(task, split, address, data_root)
    root = container.folder
    images = task.image_root
    if split == "test" and task.test != task.train and task.test_image_root is not None:
        images = task.test_image_root
    if images is not None:
        root = find_path(data_root, images, f"task {task.name!r}: image folder")
    return DataSource(task, split, container, root, address.limit)


@dataclass(frozen=True)
class DataSource:
    """The data of one split of a task, located but not yet read.

    Args:
        task: The task.
        split: The split.
        container: Holds the items.
        image_root: Folder that image paths are relative to.
        limit: Maximum number of items; None means all.
    """

    task: Task
    split: Split
    container: Container
    image_root: Path
    limit: int | None = None

    @property
    def address(self) -> str:
        """Name of the source in messages."""
        return self.container.address

    def items(self) -> Numbered:
        """Yield the items with their positions: columns renamed, prompts and limit applied.

        Values that are not objects are yielded unchanged.

        Raises:
            FileNotFoundError: If a file does not exist.
            ValueError: If the content is broken, or an item lacks a key that `Task` names.
        """
        items = self._renamed()
        if self.limit is not None:
            count = sum(1 for _ in self.container.items())
            items = limited(items, count, self.limit)
        if self.task.prompt is None and self.container.prompt is None:
            return items
        return self._prompted(items)

    def shapes(self) -> tuple[Shape, ...]:
        """Return the shapes that the items may have: one, or several for published files.

        Raises:
            ValueError: If the first items match no shape or several, or differ in shape.
        """
        if self.container.shapes:
            return tuple(SHAPES[name] for name in self.container.shapes)
        first = self.first_items()
        try:
            return (recognise(first),) if first else ()
        except ValueError as error:
            raise ValueError(f"{self.address}: {error}") from error

    def first_items(self) -> list[Mapping[str, Any]]:
        """Return the first items, which determine the shape, up to the first broken one."""
        first: list[Mapping[str, Any]] = []
        with suppress(ValueError, OSError):  # reading the items raises the same error
            for _, item in islice(self._renamed(), _FIRST):
                if not isinstance(item, dict):
                    break
                first.append(item)
        return first

    def images(self) -> ImageFinder:
        """Return the finder of the images, which are decoded as the task says."""
        finder = self.container.images(self.image_root)
        options = self.task.images
        return finder if options is None else TreatedImages(finder, options)

    def reader(self, shapes: tuple[Shape, ...], images: ImageFinder) -> ItemReader:
        """Return the reader that makes samples from the items."""
        return ItemReader(self.split, images, self.task.prompt_suffix, shapes)

    def samples(self) -> Samples:
        """Return all samples; see `open_source`."""
        entry = CacheEntry(self.address, self.images(), self._key)
        samples = entry.load()
        if samples is not None:
            return samples
        rows = self._rows(entry.images)
        head: list[Row] = []
        characters = 0
        while len(head) <= IN_MEMORY and characters <= IN_MEMORY_CHARACTERS:
            row = next(rows, None)
            if row is None:
                return SampleList(unique_samples(self.address, head))
            head.append(row)
            characters += sum(map(len, row.images))
        return entry.make(chain(head, rows))

    def _rows(self, images: ImageFinder) -> Iterator[Row]:
        """Yield the samples, each with its position and the names of its images."""
        reader = self.reader(self.shapes(), images)
        for index, item in self.items():
            if not isinstance(item, dict):
                raise ValueError(f"{self.address}: item {index} is {kind_of(item)}, not an object")
            try:
                conversation = reader.parse(item)
                names = [name_of(image) for image in conversation.images]
                stored = [images.find(name) for name in names]
                yield Row(index, reader.sample(conversation, stored, index), names)
            except (ValueError, FileNotFoundError) as error:
                raise item_error(self.address, index, item, error) from error

    def _key(self) -> tuple[object, ...]:
        """Return everything the samples depend on, except for the image files."""
        task = self.task
        return (
            *(type(self.container).__name__, self.container.version(), self.split, self.limit),
            *(task.format, task.prompt, task.prompt_suffix, sorted(task.columns.items())),
            os.path.abspath(self.image_root),
        )

    def _renamed(self) -> Numbered:
        """Yield the items with the task's keys and with a suffix on repeated ids."""
        counts: Counter[str] = Counter()
        for index, item in self.container.items():
            if isinstance(item, dict):
                if self.task.columns:
                    item = self._with_columns(index, item)
                if self.container.published:
                    name = sample_id(item, index)
                    counts[name] += 1
                    item |= {"id": name if counts[name] == 1 else f"{name}#{counts[name]}"}
            yield index, item

    def _with_columns(self, index: int, item: dict[str, Any]) -> dict[str, Any]:
        columns = self.task.columns
        for key, column in columns.items():
            if column not in item:
                keys = ", ".join(map(repr, list(item)[:8]))
                message = f"has no {column!r}, which 'columns' takes for {key!r}; it has {keys}"
                raise item_error(self.address, index, item, ValueError(message))
        renamed = set(columns.values())
        rest = {key: value for key, value in item.items() if key not in renamed}
        return rest | {key: item[column] for key, column in columns.items()}

    def _prompted(self, items: Iterable[tuple[int, Any]]) -> Numbered:
        prompt = self.container.prompt if self.task.prompt is None else self.task.prompt
        assert prompt is not None  # items() checks this
        for index, item in items:
            if isinstance(item, dict):
                try:
                    item = apply_prompt(item, prompt)
                except ValueError as error:
                    raise item_error(self.address, index, item, error) from error
            yield index, item


def address_of(task: Task, split: Split) -> str:
    """Return the address of the training or test samples of a task."""
    address = task.train if split == "train" else task.test
    assert address is not None  # validate_tasks refuses tasks without one
    return address


def __getattr__(name: str) -> Any:
    return moved_name(__name__, name)
