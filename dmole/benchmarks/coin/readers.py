"""Readers of CoIN's files; answers of ScienceQA, TextVQA and GQA are in side files."""

from __future__ import annotations

from typing import Any

from dmole.benchmarks.shared.answers import SideAnswers, question_id, with_answers
from dmole.benchmarks.shared.captions import caption_references
from dmole.data.items import (
    Item,
    Numbered,
    SourceFiles,
    as_question,
    choices_of,
    letter_of,
    read_object,
)


def coin_items(source: SourceFiles) -> Numbered:
    """Yield the questions or conversations of a CoIN file.

    The optional side file ``captions``, a COCO caption file, replaces the answers of test items
    with all captions of their image.

    Source:
        CoIN and UCIT: ``train.json`` and ``test.json`` (zackschen/CoIN, Ghy0501/HiDe-LLaVA).
    """
    if source.split == "test" and "captions" in source.side_files:
        yield from caption_references(source, source.side_files["captions"])
    else:
        yield from source.items()


def scienceqa_items(source: SourceFiles) -> Numbered:
    """Yield ScienceQA questions with choices and answer from ``problems``.

    If ``splits`` is given, the test items must contain all ids of its list ``test``, because the
    published accuracy is over these ids.

    Source:
        zackschen/CoIN ``eval_science_qa.py``.
    """
    if source.split == "train":
        yield from source.items()
        return
    problems = read_object(source.side_files["problems"])
    seen: set[str] = set()
    for index, item in source.items():
        pid = question_id(source, index, item)
        if pid not in problems:
            path = source.side_files["problems"]
            raise source.error(index, item, f"its id is not in {path}")
        seen.add(pid)
        yield index, _solved(source, index, item, problems[pid])
    if "splits" in source.side_files:
        _check_split(source, seen)


def _solved(source: SourceFiles, index: int, item: Item, problem: Any) -> Item:
    try:
        choices = list(choices_of(problem))
        letter = letter_of(problem.get("answer"), choices)
        return as_question(item) | {"choices": choices, "answer": letter}
    except (ValueError, AttributeError) as error:
        raise source.error(index, item, f"{source.side_files['problems']}: {error}") from error


def _check_split(source: SourceFiles, seen: set[str]) -> None:
    path = source.side_files["splits"]
    listed = read_object(path).get("test")
    if not isinstance(listed, list):
        raise ValueError(f"{path}: has no list 'test'")
    missing = [str(pid) for pid in listed if str(pid) not in seen]
    if missing:
        raise ValueError(
            f"{source.path}: lacks {len(missing)} of the {len(listed)} test questions of {path}, "
            f"such as {missing[0]!r}; without side file 'splits' this is not checked"
        )


def textvqa_items(source: SourceFiles) -> Numbered:
    """Yield TextVQA questions with the ten human answers of ``annotations``.

    Source:
        zackschen/CoIN ``eval_textvqa.py``: paired by ``question_id``.
    """
    yield from with_answers(source, "data", lambda entry: entry.get("answers"))


def gqa_items(source: SourceFiles) -> Numbered:
    """Yield GQA questions with the answers of ``questions``; unbalanced ones are left out.

    Source:
        zackschen/CoIN ``eval_gqa.py``.
    """
    if source.split == "train":
        yield from source.items()
        return
    path = source.side_files["questions"]
    side = SideAnswers(path, read_object(path), lambda entry: entry.get("answer"))
    for index, item in source.items():
        qid = question_id(source, index, item)
        answered = side.answer(source, index, item, qid)
        if side.entries[qid].get("isBalanced", True):
            yield index, answered
