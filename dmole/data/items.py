"""The input of a layout: the file of a split and its side files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dmole.data.formats import Split
from dmole.data.streaming import kind_of, stream_items
from dmole.storage.files import read_json

Item = dict[str, Any]
"""A question or conversation, in the form that `ItemReader` reads."""

Numbered = Iterator[tuple[int, Item]]
"""Items with their positions in the file."""


@dataclass(frozen=True)
class SourceFiles:
    """The files of one split of a task.

    Args:
        path: The file or folder that holds the items.
        split: The split.
        side_files: Further files by name.
    """

    path: Path
    split: Split
    side_files: Mapping[str, Path] = field(default_factory=dict)

    def items(self) -> Numbered:
        """Yield the objects of the file.

        Raises:
            ValueError: If the file is broken or holds a value that is not an object.
        """
        for index, item in stream_items(self.path):
            if not isinstance(item, dict):
                raise ValueError(f"{self.path}: item {index} is {kind_of(item)}, not an object")
            yield index, item

    def error(self, index: int, item: Mapping[str, Any], message: str) -> ValueError:
        """Return the error of an item."""
        name = item.get("question_id", item.get("id", index))
        return ValueError(f"{self.path}: item {index} (id {str(name)!r}): {message}")


def read_object(path: Path, *keys: str) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Args:
        path: The file.
        keys: Keys whose values must be lists of objects.

    Raises:
        ValueError: If the file holds anything else.
    """
    content = read_json(path, limit=None)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: must hold an object, but holds {kind_of(content)}")
    for key in keys:
        entries = content.get(key)
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise ValueError(f"{path}: {key!r} must be a list of objects")
    return content


def index_by(entries: Iterable[Mapping[str, Any]], key: str, path: Path) -> dict[str, Any]:
    """Return the entries of a side file, indexed by the value of a key as text.

    Raises:
        ValueError: If an entry lacks the key, or two different entries have the same value.
    """
    indexed: dict[str, Any] = {}
    for position, entry in enumerate(entries):
        if key not in entry:
            raise ValueError(f"{path}: entry {position} has no {key!r}")
        name = str(entry[key])
        if indexed.setdefault(name, entry) != entry:
            raise ValueError(f"{path}: entry {position} repeats the {key!r} {name!r} with a change")
    return indexed


def as_question(item: Item) -> Item:
    """Return an item in question form; a conversation must be one question with its answer.

    Raises:
        ValueError: If the item is a longer conversation, or has neither form.
    """
    if "conversations" not in item:
        return item
    turns = item["conversations"]
    if not isinstance(turns, list) or not 1 <= len(turns) <= 2:
        raise ValueError("must be one question, but 'conversations' holds more or less")
    if not all(isinstance(turn, dict) and isinstance(turn.get("value"), str) for turn in turns):
        raise ValueError("'conversations' must hold objects with the keys 'from' and 'value'")
    rest = {key: value for key, value in item.items() if key != "conversations"}
    answer = {"answer": turns[1]["value"]} if len(turns) == 2 else {}
    return rest | {"text": turns[0]["value"]} | answer


def choices_of(item: Mapping[str, Any]) -> Sequence[str]:
    """Return the options of an item.

    Raises:
        ValueError: If there are none or more than 26, or one is not text.
    """
    choices = item.get("choices")
    if not isinstance(choices, list) or not 1 <= len(choices) <= len(LETTERS):
        raise ValueError(f"'choices' must be a list of 1 to {len(LETTERS)} options")
    if not all(isinstance(choice, str | int | float) for choice in choices):
        raise ValueError(f"'choices' must hold texts, got {choices!r}")
    return [str(choice) for choice in choices]


LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def letter_of(index: Any, choices: Sequence[str]) -> str:
    """Return the letter of an option.

    Raises:
        ValueError: If the index is not an integer in range.
    """
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(choices):
        raise ValueError(f"answer {index!r} is not an index of the {len(choices)} choices")
    return LETTERS[index]
