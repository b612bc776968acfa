"""InternVL's meta files: an object of annotation files and the repetitions of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dmole.data.shapes.checks import has_content, short

_CHANGES = ("data_augment", "max_dynamic_patch", "min_dynamic_patch", "conv_style")
"""Keys by which InternVL would change images or prompts of one part."""


@dataclass(frozen=True)
class MetaPart:
    """One entry of a meta file.

    Args:
        name: Key of the entry.
        annotation: The file of the items.
        root: Folder of the images; empty for the folder of the data.
        repeat: Number of times each item occurs.
        length: Expected number of items in the file, if given.
    """

    name: str
    annotation: str
    root: str
    repeat: int
    length: int | None


def is_meta(content: Any) -> bool:
    """Return whether the content of a JSON file is a meta file: named ``annotation`` entries."""
    if not isinstance(content, Mapping) or not content:
        return False
    entries = content.values()
    return all(isinstance(entry, Mapping) and "annotation" in entry for entry in entries)


def meta_parts(content: Mapping[str, Any]) -> Iterator[MetaPart]:
    """Yield the parts of a meta file in order.

    Args:
        content: The content of the file, for which `is_meta` is true.

    Raises:
        ValueError: If an entry is malformed or holds an unsupported key; the message
            names the entry.
    """
    for name, entry in content.items():
        try:
            yield _part(name, entry)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error


def _part(name: str, entry: Mapping[str, Any]) -> MetaPart:
    for key in _CHANGES:
        if has_content(entry.get(key)):
            raise ValueError(f"has {key!r}, which is not supported")
    annotation, root = entry["annotation"], entry.get("root")
    if not isinstance(annotation, str) or not annotation:
        raise ValueError(f"'annotation' must be the path of a file, got {short(annotation)}")
    if root is not None and not isinstance(root, str):
        raise ValueError(f"'root' must be the path of a folder, got {short(root)}")
    repeat, length = entry.get("repeat_time", 1), entry.get("length")
    if isinstance(repeat, float) and repeat.is_integer():
        repeat = int(repeat)
    if isinstance(repeat, bool) or not isinstance(repeat, int) or repeat < 1:
        raise ValueError(f"'repeat_time' must be 1 or more, got {short(repeat)}")
    if length is not None and (isinstance(length, bool) or not isinstance(length, int)):
        raise ValueError(f"'length' must be a number of items, got {short(length)}")
    return MetaPart(name, annotation, root or "", repeat, length)
