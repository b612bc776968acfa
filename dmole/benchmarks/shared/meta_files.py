"""Meta files of D-MoLE's release, which a task may give as its training file."""

from __future__ import annotations

from pathlib import Path

from dmole.data.items import Item, Numbered
from dmole.data.streaming import kind_of, stream_items
from dmole.storage.files import read_json


def is_meta(path: Path) -> bool:
    """Return whether a file is a D-MoLE meta file: an object of ``annotation`` entries."""
    if path.suffix != ".json" or not path.is_file():
        return False
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        if file.read(64).lstrip()[:1] != "{":
            return False
    content = read_json(path)
    return bool(content) and all(
        isinstance(entry, dict) and "annotation" in entry for entry in content.values()
    )


def meta_items(path: Path, data_root: Path) -> Numbered:
    """Yield the training items that a meta file names, ``repeat_time`` times over.

    ``annotation`` and ``root`` are relative to the folder of all data. ``length`` must be the
    number of lines: the release takes its progress from it.

    Args:
        path: The meta file.
        data_root: Folder of all data.

    Raises:
        FileNotFoundError: If an annotation file does not exist.
        ValueError: If an entry is malformed or its length is not that of its file.

    Source:
        gcd19/D-MoLE ``shell/dmole/*.json`` and ``internvl/train/dataset.py``.
    """
    position = 0
    for name, entry in read_json(path).items():
        times = entry.get("repeat_time", 1)
        if isinstance(times, bool) or not isinstance(times, int) or times < 1:
            raise ValueError(f"{path}: {name}: 'repeat_time' must be 1 or more, got {times!r}")
        annotation = data_root / str(entry["annotation"])
        items = [item for _, item in stream_items(annotation)]
        if entry.get("length", len(items)) != len(items):
            raise ValueError(
                f"{path}: {name}: 'length' is {entry['length']!r}, "
                f"but {annotation} holds {len(items)} items"
            )
        for item in items * times:
            if not isinstance(item, dict):
                raise ValueError(f"{annotation}: an item is {kind_of(item)}, not an object")
            yield position, _below(item, str(entry.get("root", ".")))
            position += 1


def _below(item: Item, root: str) -> Item:
    """Return an item whose image names start with the folder of the entry."""
    names = item.get("image")
    if root in ("", ".", "./") or not names:
        return item
    prefix = root.rstrip("/")
    if isinstance(names, list):
        return item | {"image": [f"{prefix}/{name}" for name in names]}
    return item | {"image": f"{prefix}/{names}"}
