"""Reads the accepted answers of a question."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dmole.data.sample import IMAGE_PLACEHOLDER
from dmole.data.shapes.checks import short


def read_answers(item: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """Return the accepted answers of a question.

    A box given as numbers is written as text; the index of a choice becomes its letter. A list
    may hold objects with an ``answer`` each, as VQAv2 has ten.

    Args:
        item: The item.
        key: Key of the answers.

    Raises:
        ValueError: If there is no answer or it has another form.
    """
    value = item.get(key)
    if value is None:
        raise ValueError(f"has no {key!r}")
    if key == "answer_bbox" and isinstance(value, list | tuple):
        value = str(list(value))
    if isinstance(value, int) and not isinstance(value, bool) and item.get("choices"):
        value = _letter(value, item["choices"])
    answers = [value] if isinstance(value, str) else value
    if isinstance(answers, list | tuple):
        answers = [
            entry.get("answer") if isinstance(entry, Mapping) else entry for entry in answers
        ]
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise ValueError(f"{key!r} must be a string or a list of strings, got {short(value)}")
    if not any(answer.strip() for answer in answers):  # some of ten human answers may be blank
        raise ValueError("the answer is empty")
    if any(IMAGE_PLACEHOLDER in answer for answer in answers):
        raise ValueError(f"an answer cannot hold {IMAGE_PLACEHOLDER}")
    return tuple(answers)


def is_list_of_answers(item: Mapping[str, Any], key: str) -> bool:
    """Return whether the item accepts a list of answers rather than one."""
    return key != "answer_bbox" and isinstance(item.get(key), list | tuple)


def choice_keys(item: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """Return the keys that `read_answers` uses besides the key of the answers."""
    value = item.get(key)
    return ("choices",) if isinstance(value, int) and not isinstance(value, bool) else ()


def _letter(index: int, choices: Any) -> str:
    if not isinstance(choices, list | tuple) or not 0 <= index < len(choices) <= 26:
        shown = short(choices)
        raise ValueError(f"'answer' {index} is not the index of one of the 'choices' {shown}")
    return chr(ord("A") + index)
