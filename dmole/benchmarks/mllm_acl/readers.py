"""Readers of MLLM-ACL's test files whose answers are elsewhere: Math and APP."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from dmole.benchmarks.shared.answers import question_id
from dmole.data.items import Item, Numbered, SourceFiles, as_question, read_object

_KEYS = ("answer", "question_type", "answer_type", "choices", "precision")
"""Keys of a problem of MathVista that the rule reads."""
_NUMBER = re.compile(r"(\d+)$")

Lookup = Callable[[int], Any]


def mathvista_items(source: SourceFiles) -> Numbered:
    """Yield the questions of Math with answers and types of MathVista's ``problems``.

    The number at the end of an id (``testmini_7``) is a problem's ``pid`` or its position in the
    file. Which of the two is decided for the whole file: each question must contain the text of its
    problem.

    Raises:
        ValueError: If an id ends in no number, or its problem has another question or no answer.

    Source:
        bjzhb666/MLLM-CL ``model_math.py``, which takes the number for the position in a table;
        AI4Math/MathVista ``testmini.json``.
    """
    if source.split == "train":
        yield from source.items()
        return
    path = source.side_files["problems"]
    problems = read_object(path)
    listed = list(problems.values())

    def by_pid(number: int) -> Any:
        return problems.get(str(number))

    def by_position(number: int) -> Any:
        return listed[number] if number < len(listed) else None

    items = [(index, as_question(item)) for index, item in source.items()]
    lookups = (by_pid, by_position)
    matches = [
        sum(_asks(item, _found(source, i, item, each)) for i, item in items) for each in lookups
    ]
    lookup = lookups[matches.index(max(matches))]
    for index, item in items:
        problem = _found(source, index, item, lookup)
        if not _asks(item, problem):
            raise source.error(index, item, f"its question is not that of its problem in {path}")
        if not isinstance(problem.get("answer"), str):
            raise source.error(index, item, f"its problem in {path} has no 'answer'")
        facts = {key: problem[key] for key in _KEYS if problem.get(key) is not None}
        yield index, item | facts


def _found(source: SourceFiles, index: int, item: Item, lookup: Lookup) -> Any:
    match = _NUMBER.search(question_id(source, index, item))
    if match is None:
        raise source.error(index, item, "its id does not end in a number")
    return lookup(int(match[1]))


def _asks(item: Item, problem: Any) -> bool:
    """Return whether the text of an item contains the question of a problem."""
    if not isinstance(problem, Mapping) or not isinstance(problem.get("question"), str):
        return False
    return " ".join(problem["question"].split()) in " ".join(str(item.get("text", "")).split())


def gui_items(source: SourceFiles) -> Numbered:
    """Yield the questions of APP; the side file ``answers`` has the letters of those without one.

    It is an object of letters by ``question_id``. MMT-Bench keeps the answers of its test split on
    a server; those of its validation split are public.

    Raises:
        ValueError: If a question has no answer in either file.

    Source:
        bjzhb666/MLLM-CL ``convert_result_to_submission.py``.
    """
    path = source.side_files.get("answers") if source.split == "test" else None
    letters = {} if path is None else read_object(path)
    for index, item in source.items():
        if source.split == "train" or item.get("answer") or "conversations" in item:
            yield index, item
            continue
        letter = letters.get(question_id(source, index, item))
        if not isinstance(letter, str):
            where = "and no side file 'answers' is given" if path is None else f"in {path} either"
            raise source.error(
                index, item, f"has no answer, {where}: the published test set is scored by a server"
            )
        yield index, item | {"answer": letter}
