"""Answers that are the letter of an option: helpers for the rules of several benchmarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dmole.metrics.base import ScoringItem

LETTERS = "ABCDE"


def right_letter(reference: str, metadata: Mapping[str, Any]) -> str:
    """Return the letter of the right option.

    Args:
        reference: The letter, or the text of one of the options.
        metadata: May hold ``answer_index`` and ``choices``.

    Raises:
        ValueError: If the reference is neither; the message quotes it.

    Example:
        >>> right_letter("a dog", {"choices": ["a cat", "a dog"]})
        'B'
    """
    index = metadata.get("answer_index")
    if isinstance(index, int) and not isinstance(index, bool):
        if not 0 <= index < len(LETTERS):
            raise ValueError(f"answer_index {index} is not among the options A to E")
        return LETTERS[index]
    answer = reference.strip()
    if len(answer) == 1 and answer in LETTERS:
        return answer
    if answer in option_texts(metadata):
        return LETTERS[option_texts(metadata).index(answer)]
    raise ValueError(
        f"reference {reference!r} is neither a letter A to E nor one of the sample's 'choices'"
    )


def option_texts(metadata: Mapping[str, Any]) -> list[str]:
    """Return the texts of the options; empty if the sample has none.

    Raises:
        ValueError: If there are more than five, or ``choices`` is not a list.
    """
    choices = metadata.get("choices")
    if choices is None:
        return []
    if not isinstance(choices, Sequence) or isinstance(choices, str):
        raise ValueError(f"'choices' must be a list, got {choices!r}")
    if len(choices) > len(LETTERS):
        raise ValueError(
            f"'choices' has {len(choices)} options, at most {len(LETTERS)} are supported"
        )
    return [str(choice) for choice in choices]


def allowed_letters(item: ScoringItem) -> str:
    """Return the letters of the options of an item, all five if it lists none."""
    return LETTERS[: len(option_texts(item.metadata)) or len(LETTERS)]


def right_letters(item: ScoringItem) -> set[str]:
    """Return the letters of the right options."""
    return {right_letter(reference, item.metadata) for reference in item.references}


def judge_letter(item: ScoringItem, letter: str | None) -> float | None:
    """Return 1 for a right letter, 0 for a wrong one, None if it is not an option."""
    right = right_letters(item)
    return (
        float(letter in right) if letter is not None and letter in allowed_letters(item) else None
    )
