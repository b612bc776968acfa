"""One file to be examined, and its items as they come."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmole.data.doctor.findings import Finding, one_line
from dmole.data.formats import ItemReader, Split, image_names, sample_id
from dmole.data.images import ImageRoot
from dmole.data.sample import FileImage, Sample
from dmole.data.streaming import stream_items

Tick = Callable[[int], None]
"""Is told now and then how many more items were gone through."""

_TICK = 500  # items
_LONGEST = 400  # characters of a message: it may quote what the file holds


@dataclass(frozen=True)
class Source:
    """The file of a task and split.

    Args:
        task: Name of the task.
        split: What the file is for.
        path: The file.
        image_root: Folder of the images.
        prompt_suffix: Text put behind each question.
    """

    task: str
    split: Split
    path: Path
    image_root: Path
    prompt_suffix: str = ""

    def finding(
        self, kind: str, message: str, item: int | None = None, id: str | None = None
    ) -> Finding:
        """Return a finding in this file."""
        name = None if id is None else one_line(id)
        text = one_line(message).removeprefix(f"{one_line(str(self.path))}: ")
        if len(text) > _LONGEST:
            text = f"{text[: _LONGEST - 3]}..."
        return Finding(kind, text, self.task, self.split, one_line(str(self.path)), item, name)

    def items(self, tick: Tick | None = None) -> Iterator[tuple[int, Any]]:
        """Yield position and content of each item, as `stream_items` does."""
        index = -1
        for index, item in stream_items(self.path):
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
        self._reader = ItemReader(source.split, unchecked, source.prompt_suffix)

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
