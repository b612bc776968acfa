"""Words a question as the task's prompt says."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from dmole.data.items import LETTERS, Item, choices_of, question_of

_FIELD = re.compile(r"\{(\w+)\}")


def worded(item: Item, prompt: str) -> Item:
    """Return an item whose question is worded as a prompt says; conversations stay as they are.

    Args:
        item: The item.
        prompt: Text with keys of the item in braces; see `dmole.data.task.Task`.

    Raises:
        ValueError: If the prompt names a key that the item lacks.

    Example:
        >>> worded({"question": "What? <image>", "answer": "x"}, "{question} One word.")["text"]
        'What? One word.'
    """
    if "conversations" in item:
        return item
    # one pass: braces in what is put in stand for themselves
    return item | {"text": _FIELD.sub(lambda match: _value(item, match[1]), prompt)}


def lettered(choices: Sequence[str]) -> str:
    """Return options as lines, each behind its letter."""
    return "\n".join(f"{letter}. {c}" for letter, c in zip(LETTERS, choices, strict=False))


def _value(item: Mapping[str, Any], key: str) -> str:
    if key == "question":
        question = question_of(item)
        if not question:
            raise ValueError("has no 'text' or 'question' for its prompt")
        return question
    if key == "options":
        return lettered(choices_of(item))
    value = item.get(key)
    if not isinstance(value, str | int | float):
        raise ValueError(f"has no text {key!r}, which its prompt names")
    return str(value)
