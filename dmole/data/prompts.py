"""Applies the task's prompt template to questions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from dmole.data.items import LETTERS, Item, choices_of
from dmole.data.sample import IMAGE_PLACEHOLDER
from dmole.data.shapes.query import is_query_by_question
from dmole.data.shapes.question import split_placeholders

_FIELD = re.compile(r"\{(\w+)\}")


def apply_prompt(item: Item, prompt: str) -> Item:
    """Return an item with a prompt template applied to its question.

    Conversations are returned unchanged.

    Args:
        item: The item.
        prompt: Template with keys of the item in braces; see `dmole.data.task.Task`.

    Raises:
        ValueError: If the prompt names a key that the item lacks.

    Example:
        >>> apply_prompt({"question": "What?", "answer": "x"}, "{question} One word.")["text"]
        'What? One word.'
    """
    key = question_key(item)
    if key is None:
        return item
    text = item.get(key)
    # placeholders are counted later: those that {question} leaves out are put first
    outside = split_placeholders(text)[0] if isinstance(text, str) else 0
    # one pass: braces in inserted values are literal
    text_with_prompt = _FIELD.sub(lambda match: _value(item, match[1]), prompt)
    if not outside:
        return item | {_target(item, key): text_with_prompt}
    return item | {_target(item, key): f"{IMAGE_PLACEHOLDER}\n" * outside + text_with_prompt}


def question_key(item: Mapping[str, Any]) -> str | None:
    """Return the key of an item's question, or None if the item is a conversation."""
    if any(key in item for key in ("conversations", "messages")):
        return None
    keys = [key for key in ("text", "question", "query", "prompt", "problem") if key in item]
    if not keys:
        return "text"  # layouts whose prompt is the whole question
    return None if isinstance(item[keys[0]], list) else keys[0]


def _target(item: Mapping[str, Any], key: str) -> str:
    """Return the key under which the question with its prompt is stored."""
    return "text" if key == "question" and not is_query_by_question(item) else key


def prompt_keys(prompt: str | None) -> set[str]:
    """Return the keys of an item that a prompt template reads.

    Example:
        >>> sorted(prompt_keys("{context} {question} {options}"))
        ['choices', 'context', 'question']
    """
    keys = set(_FIELD.findall(prompt or ""))
    return keys - {"options"} | ({"choices"} if "options" in keys else set())


def lettered(choices: Sequence[str]) -> str:
    """Return the options as lines, each after its letter."""
    return "\n".join(f"{letter}. {c}" for letter, c in zip(LETTERS, choices, strict=False))


def _value(item: Mapping[str, Any], key: str) -> str:
    if key == "question":
        text = item.get(question_key(item) or "text", "")
        question = split_placeholders(text)[1] if isinstance(text, str) else ""
        if not question:
            raise ValueError("has no 'text' or 'question' for its prompt")
        return question
    if key == "options":
        return lettered(choices_of(item))
    value = item.get(key)
    if not isinstance(value, str | int | float):
        raise ValueError(f"has no text {key!r}, which its prompt names")
    return str(value)
