"""Answers that are the letter of an option: ScienceQA of CoIN, IconQA and PMC-VQA of D-MoLE."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from dmole.benchmarks.rules.rule import Rule, has_words
from dmole.metrics.base import Item

LETTERS = "ABCDE"

_LONE = re.compile(r"\b\w\b")
# "a" and "A" before another word are the article, unless that word speaks of the option itself
_ARTICLE = r"[aA](?=[ \t]+\w)(?![ \t]+(?:is|or|and|because|since)\b)"
_OPTION = re.compile(rf"(?<![^\W_])(?!{_ARTICLE})([A-Ea-e])(?![^\W_]|['\u2019])")


def letter_of(reference: str, metadata: Mapping[str, Any]) -> str:
    """Return the letter of the right option.

    Args:
        reference: The letter, or the text of one of the options.
        metadata: May hold ``answer_index`` and ``choices``.

    Raises:
        ValueError: If the reference is neither; the message shows it.

    Example:
        >>> letter_of("a dog", {"choices": ["a cat", "a dog"]})
        'B'
    """
    index = metadata.get("answer_index")
    if isinstance(index, int):
        if not 0 <= index < len(LETTERS):
            raise ValueError(f"answer_index {index} is not among the options A to E")
        return LETTERS[index]
    answer = reference.strip()
    if len(answer) == 1 and answer in LETTERS:
        return answer
    if answer in _choices(metadata):
        return LETTERS[_choices(metadata).index(answer)]
    raise ValueError(
        f"reference {reference!r} is neither a letter A to E nor one of the sample's 'choices'"
    )


def _choices(metadata: Mapping[str, Any]) -> list[str]:
    """Return the options' texts; empty where the sample does not tell them.

    Raises:
        ValueError: If there are more than five, or it is not a list.
    """
    choices = metadata.get("choices")
    if choices is None:
        return []
    if not isinstance(choices, Sequence) or isinstance(choices, str):
        raise ValueError(f"'choices' must be a list, got {choices!r}")
    if len(choices) > len(LETTERS):
        raise ValueError(f"'choices' has {len(choices)} options, at most {len(LETTERS)} are known")
    return [str(choice) for choice in choices]


def _allowed(item: Item) -> str:
    return LETTERS[: len(_choices(item.metadata)) or len(LETTERS)]


def scienceqa_letter(text: str) -> str | None:
    """Return the letter that CoIN reads in an answer; any one character, or None.

    Example:
        >>> scienceqa_letter("It is a rock"), scienceqa_letter("B. a rock")
        ('A', 'B')
    """
    if text in LETTERS and len(text) == 1:
        return text
    if text[1:3] == ". " and text[0] in ascii_uppercase:
        return text[0]
    found = _LONE.search(text)
    return found[0].upper() if found else None


def option_letter(text: str, allowed: str) -> str | None:
    """Return the first option letter of an answer, not taking the article "a" for one.

    Example:
        >>> option_letter("Because a plant is green, E", "ABCDE")
        'E'
        >>> option_letter("It is a rock", "ABCDE") is None
        True
    """
    for found in _OPTION.finditer(text):
        if found[1].upper() in allowed:
            return found[1].upper()
    return None


def _right_letters(item: Item) -> set[str]:
    return {letter_of(reference, item.metadata) for reference in item.references}


def _judge_letter(item: Item, letter: str | None) -> float | None:
    right = _right_letters(item)
    return float(letter in right) if letter is not None and letter in _allowed(item) else None


def _scienceqa(item: Item) -> float | None:
    return _judge_letter(item, scienceqa_letter(item.text))


def _scienceqa_corrected(item: Item) -> float | None:
    return _judge_letter(item, option_letter(item.text, _allowed(item)))


def release_letter(text: str, options: Mapping[str, str]) -> str | None:
    """Return what D-MoLE's release makes of an answer; None where it crashes on a blank one.

    Args:
        text: The answer.
        options: Text of each option by its letter.

    Example:
        >>> release_letter("liver.", {"A": "left lung", "B": "liver"})
        'B'
    """
    answer = text.strip()
    if len(answer) == 1:
        return answer
    if not answer:
        return None
    if answer[0] in options:
        return answer[0]
    return next((letter for letter, option in options.items() if option in answer), answer)


def _options(item: Item) -> dict[str, str]:
    choices = _choices(item.metadata)
    if not choices:
        raise ValueError(
            "this rule needs the texts of the options: a sample has no 'choices' "
            f"(its reference is {item.references[0]!r})"
        )
    return dict(zip(LETTERS, choices, strict=False))


def _multichoice(item: Item) -> float | None:
    letter = release_letter(item.text, _options(item))
    return None if letter is None else float(letter in _right_letters(item))


def judge_batch(items: Sequence[Item]) -> list[float]:
    """Return the scores of a batch all of whose answers are read by its first sample's options.

    Args:
        items: The samples of one batch, in the order of the file.
    """
    options = _options(items[0])
    return [float(release_letter(item.text, options) in _right_letters(item)) for item in items]


def _multichoice_corrected(item: Item) -> float | None:
    """Read the whole answer as an option's text, then a letter, then the longest option inside."""
    options = {letter: " ".join(text.lower().split()) for letter, text in _options(item).items()}
    answer = " ".join(item.text.lower().split())
    bare = answer.strip(" .:;,()[]\"'")
    whole = [letter for letter, text in options.items() if text in (answer, bare)]
    letter = whole[0] if whole else option_letter(item.text, "".join(options))
    if letter is None:
        inside = [key for key, text in options.items() if has_words(answer, text)]
        letter = max(inside, key=lambda key: len(options[key]), default=None)
    return _judge_letter(item, letter)


SCIENCEQA = Rule(
    published=_scienceqa,
    corrected=_scienceqa_corrected,
    does="the answer itself if it is a letter A-E, else its first character if '. ' follows, else "
    "its first lone word character; wrong if that is no option; questions without an answer "
    "count as wrong",
    fixes=(
        "the article 'a' is not option A",
        "other lone characters ('I', the s of 's, a digit) are passed over, not taken for an "
        "answer",
    ),
    source="CoIN, ETrain/Eval/LLaVA/CoIN/eval_science_qa.py",
    missing="wrong",
    needs=("choices", "answer_index"),
)

MULTICHOICE = Rule(
    published=_multichoice,
    corrected=_multichoice_corrected,
    does="a one-character answer as it is; else its first character if that is an option's letter; "
    "else the first option whose text occurs in it, in the case it is written "
    "in; a blank answer, on which the release crashes, is wrong",
    fixes=(
        "a lower-case letter is an answer",
        "a word that begins with an option's letter ('dark red', 'Because ...') is not that option",
        "a letter in brackets or at the end of a sentence is read",
        "options are found as whole words, in either case, the longest first",
    ),
    source="D-MoLE, eval/vqa/evaluate_multi_choice.py",
    needs=("choices", "answer_index"),
)
