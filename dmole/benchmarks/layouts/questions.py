"""Layouts of question files whose answers lie in a side file: ScienceQA, TextVQA, GQA, VizWiz."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from dmole.benchmarks.layouts.captions import caption_references
from dmole.data.items import (
    Item,
    Numbered,
    Source,
    as_question,
    choices_of,
    index_by,
    letter_of,
    read_json,
    read_object,
)
from dmole.data.streaming import kind_of


def coin_items(source: Source) -> Numbered:
    """Yield the questions or conversations of a CoIN file.

    The optional side file ``captions``, a COCO caption file, replaces the answers of test items
    by all captions of their image.

    Source:
        CoIN and UCIT: ``train.json`` and ``test.json`` (zackschen/CoIN, Ghy0501/HiDe-LLaVA).
    """
    if source.split == "test" and "captions" in source.side_files:
        yield from caption_references(source, source.side_files["captions"])
    else:
        yield from source.items()


def scienceqa_items(source: Source) -> Numbered:
    """Yield ScienceQA questions with choices and answer from ``problems``.

    Test items are checked against the list ``test`` of ``splits`` where it is given: the published
    accuracy is over all of its ids.

    Source:
        zackschen/CoIN ``eval_science_qa.py``.
    """
    if source.split == "train":
        yield from source.items()
        return
    problems = read_object(source.side_files["problems"])
    seen: set[str] = set()
    for index, item in source.items():
        pid = _question_id(source, index, item)
        if pid not in problems:
            path = source.side_files["problems"]
            raise source.fault(index, item, f"its id is not in {path}")
        seen.add(pid)
        yield index, _solved(source, index, item, problems[pid])
    if "splits" in source.side_files:
        _check_split(source, seen)


def _solved(source: Source, index: int, item: Item, problem: Any) -> Item:
    try:
        choices = list(choices_of(problem))
        letter = letter_of(problem.get("answer"), choices)
        return as_question(item) | {"choices": choices, "answer": letter}
    except (ValueError, AttributeError) as error:
        raise source.fault(index, item, f"{source.side_files['problems']}: {error}") from error


def _check_split(source: Source, seen: set[str]) -> None:
    path = source.side_files["splits"]
    wanted = read_object(path).get("test")
    if not isinstance(wanted, list):
        raise ValueError(f"{path}: has no list 'test'")
    missing = [str(pid) for pid in wanted if str(pid) not in seen]
    if missing:
        raise ValueError(
            f"{source.path}: lacks {len(missing)} of the {len(wanted)} test questions of {path}, "
            f"such as {missing[0]!r}; without side file 'splits' those there are will do"
        )


def textvqa_items(source: Source) -> Numbered:
    """Yield TextVQA questions with the ten human answers of ``annotations``.

    Source:
        zackschen/CoIN ``eval_textvqa.py``: paired by ``question_id``.
    """
    yield from _with_answers(source, "data", lambda entry: entry.get("answers"))


def vizwiz_items(source: Source) -> Numbered:
    """Yield VizWiz questions with the ten human answers of ``annotations``.

    The side file is in VQAv2 form (``annotations`` by ``question_id``), or VizWiz's own list of
    entries by ``image``.

    Source:
        gcd19/D-MoLE ``eval/vqa/evaluate_vqa.py``; vizwiz.org.
    """
    path = source.side_files.get("annotations")
    if source.split == "train" or path is None or isinstance(read_json(path), dict):
        yield from _with_answers(source, "annotations", _human_answers)
        return
    content = read_json(path)
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise ValueError(f"{path}: must hold a list of objects, but holds {kind_of(content)}")
    known = _Answers(path, index_by(content, "image", path), _human_answers)
    for index, item in source.items():
        yield index, known.of(source, index, item, PurePosixPath(str(item.get("image", ""))).name)


def _human_answers(entry: Item) -> Any:
    answers = entry.get("answers")
    if not isinstance(answers, list):
        return None
    return [a.get("answer") if isinstance(a, dict) else a for a in answers]


def gqa_items(source: Source) -> Numbered:
    """Yield GQA questions with the answers of ``questions``; unbalanced ones are left out.

    Source:
        zackschen/CoIN ``eval_gqa.py``.
    """
    if source.split == "train":
        yield from source.items()
        return
    path = source.side_files["questions"]
    known = _Answers(path, read_object(path), lambda entry: entry.get("answer"))
    for index, item in source.items():
        qid = _question_id(source, index, item)
        found = known.of(source, index, item, qid)
        if known.entries[qid].get("isBalanced", True):
            yield index, found


def _with_answers(source: Source, key: str, answers: Callable[[Item], Any]) -> Numbered:
    if source.split == "train":
        yield from source.items()
        return
    path = source.side_files["annotations"]
    known = _Answers(path, index_by(read_object(path, key)[key], "question_id", path), answers)
    for index, item in source.items():
        yield index, known.of(source, index, item, _question_id(source, index, item))


@dataclass(frozen=True)
class _Answers:
    """The answers of a side file: entries by name, and how an entry tells its answers."""

    path: Path
    entries: dict[str, Any]
    answers: Callable[[Item], Any]

    def of(self, source: Source, index: int, item: Item, name: str) -> Item:
        """Return a question with the answers of the entry of a name."""
        entry = self.entries.get(name)
        if not isinstance(entry, dict):
            raise source.fault(index, item, f"{name!r} is not in {self.path}")
        found = self.answers(entry)
        if not found:
            raise source.fault(index, item, f"{name!r} has no answer in {self.path}")
        try:
            return as_question(item) | {"answer": found}
        except ValueError as error:
            raise source.fault(index, item, str(error)) from error


def _question_id(source: Source, index: int, item: Item) -> str:
    for key in ("question_id", "id"):
        if item.get(key) is not None:
            return str(item[key])
    raise source.fault(index, item, "has no 'question_id'")
