"""Questions whose answers are in a side file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmole.data.items import Item, Numbered, SourceFiles, as_question, index_by, read_object


def with_answers(source: SourceFiles, key: str, answers: Callable[[Item], Any]) -> Numbered:
    """Yield questions with their answers from the side file ``annotations``, joined by id.

    Args:
        source: The questions; training items are yielded unchanged.
        key: Key of the side file that holds the entries, each with a ``question_id``.
        answers: Returns the answers of an entry.

    Raises:
        ValueError: If a question has no entry, or its entry has no answer.
    """
    if source.split == "train":
        yield from source.items()
        return
    path = source.side_files["annotations"]
    entries = index_by(read_object(path, key)[key], "question_id", path)
    side = SideAnswers(path, entries, answers)
    for index, item in source.items():
        yield index, side.answer(source, index, item, question_id(source, index, item))


@dataclass(frozen=True)
class SideAnswers:
    """The answers of a side file.

    Args:
        path: The file.
        entries: Its entries by question id or image name.
        answers: Returns the answers of an entry.
    """

    path: Path
    entries: dict[str, Any]
    answers: Callable[[Item], Any]

    def answer(self, source: SourceFiles, index: int, item: Item, name: str) -> Item:
        """Return a question with the answers of its entry.

        Args:
            source: The questions.
            index: Position of the question.
            item: The question.
            name: Key of the entry.

        Raises:
            ValueError: If the entry does not exist or has no answer.
        """
        entry = self.entries.get(name)
        if not isinstance(entry, dict):
            raise source.error(index, item, f"{name!r} is not in {self.path}")
        answers = self.answers(entry)
        if not answers:
            raise source.error(index, item, f"{name!r} has no answer in {self.path}")
        try:
            return as_question(item) | {"answer": answers}
        except ValueError as error:
            raise source.error(index, item, str(error)) from error


def question_id(source: SourceFiles, index: int, item: Item) -> str:
    """Return the id of a question.

    Raises:
        ValueError: If the question has no id.
    """
    for key in ("question_id", "id"):
        if item.get(key) is not None:
            return str(item[key])
    raise source.error(index, item, "has no 'question_id'")
