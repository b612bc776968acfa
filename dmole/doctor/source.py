"""One file to be examined, and its items as they come."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dmole.data.formats import ItemReader, Split, image_names, sample_id
from dmole.data.images import ImageRoot
from dmole.data.paths import alternatives
from dmole.data.sample import FileImage, Sample
from dmole.data.streaming import stream_items
from dmole.data.task import Task
from dmole.data.task_files import open_task
from dmole.doctor.findings import Finding
from dmole.messages import one_line

Tick = Callable[[int], None]
"""Is told now and then how many more items were gone through."""

_TICK = 500  # items
_LONGEST = 400  # characters of a message: it may quote what the file holds


@dataclass(frozen=True)
class Source:
    """The file of a task and split.

    Args:
        task: The task.
        split: What the file is for.
        data_root: Folder that the task's paths are relative to.
        path: The file.
        image_root: Folder of the images.
        plain: Whether the items are those of the file, unchanged.
        fault: Why the file cannot be read at all, None where it can.
    """

    task: Task
    split: Split
    data_root: Path
    path: Path
    image_root: Path
    plain: bool = True
    fault: str | None = None

    @classmethod
    def of(cls, task: Task, split: Split, data_root: Path) -> Source:
        """Return the file of a task; where there is none, the one that was looked for first."""
        try:
            opened = open_task(task, split, data_root)
        except (ValueError, OSError) as error:
            address = task.train if split == "train" else task.test
            assert address is not None  # tasks without were refused
            path = data_root / Path(alternatives(address)[0]).expanduser()
            return cls(task, split, data_root, path, path.parent, fault=str(error))
        return cls(task, split, data_root, opened.path, opened.image_root, opened.plain)

    def without_suffix(self) -> Source:
        """Return the same file with nothing put behind its questions."""
        return replace(self, task=replace(self.task, prompt_suffix=""))

    def finding(
        self, kind: str, message: str, item: int | None = None, id: str | None = None
    ) -> Finding:
        """Return a finding in this file."""
        name = None if id is None else one_line(id)
        text = one_line(message).removeprefix(f"{one_line(str(self.path))}: ")
        if len(text) > _LONGEST:
            text = f"{text[: _LONGEST - 3]}..."
        return Finding(kind, text, self.task.name, self.split, one_line(str(self.path)), item, name)

    def items(self, tick: Tick | None = None) -> Iterator[tuple[int, Any]]:
        """Yield position and content of each item.

        Those of a plain file come whatever they are; in other formats the first fault ends them.

        Raises:
            ValueError: If the file, or a side file, is broken.
            OSError: If one cannot be read.
        """
        index = -1
        for index, item in self._contents():
            yield index, item
            if tick is not None and index % _TICK == _TICK - 1:
                tick(_TICK)
        if tick is not None:
            tick((index + 1) % _TICK)

    def _contents(self) -> Iterator[tuple[int, Any]]:
        if self.fault is not None:
            raise ValueError(self.fault)
        if self.plain:
            return stream_items(self.path)
        return open_task(self.task, self.split, self.data_root).items

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


class UncheckedRoot(ImageRoot):
    """Takes every path for that of an image, so that texts can be read without the images."""

    def find(self, name: str) -> FileImage:
        """Return the image with this name, which need not exist."""
        return FileImage(Path(name))


class TolerantReader:
    """Reads items whose images may be missing.

    Args:
        source: Where the items are from.
    """

    def __init__(self, source: Source) -> None:
        self._root = ImageRoot(source.image_root)
        unchecked = UncheckedRoot(source.image_root)
        self._reader = ItemReader(source.split, unchecked, source.task.prompt_suffix)

    def read(self, item: dict[str, Any], index: int) -> Sample:
        """Return the sample of an item; its images are not looked for.

        Raises:
            ValueError: If the item is malformed.
        """
        return self._reader.read(item, index)

    def images(self, item: dict[str, Any]) -> Iterator[FileImage | tuple[str, str]]:
        """Yield each image of an item, or the kind of finding and message that it is instead."""
        try:
            names = image_names(item)
        except ValueError:
            return  # `read` refuses the item for it
        for name in names:
            try:
                yield self._root.find(name)
            except FileNotFoundError as error:
                yield "missing_image", str(error)
            except ValueError as error:
                yield "image_path", str(error)
            except OSError as error:  # a name too long, a folder that may not be read
                yield "unreadable_image", f"cannot read image {name!r}: {error.strerror}"
