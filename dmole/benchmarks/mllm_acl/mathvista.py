"""Math of MLLM-ACL: MathVista's answers, without the judge of the authors' script."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from dmole.benchmarks.mllm_acl.rules import FOLDER
from dmole.benchmarks.shared.rule import Rule, has_words, tidy
from dmole.benchmarks.shared.words import BLANK_FIX, same_tidy
from dmole.metrics.base import ScoringItem
from dmole.metrics.readers import option_letter

_MARKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_NUMBER = re.compile(r"[-+\u2212]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|[-+\u2212]?\.\d+")
_LIST = re.compile(r"\[[^\[\]]*\]")
_SAME = 1e-6  # numbers that differ by less are equal where no precision is stated


def inferred_letter(text: str, choices: Sequence[str]) -> str | None:
    """Return the option that an answer names, as in the authors' script; None leaves it to a judge.

    A letter counts if it is the only one that stands alone, else the only option whose text occurs
    in the answer, in any case. A refusal, or a lone "Z", is the option Z, which is never right.

    Example:
        >>> inferred_letter("(B) two", ["one", "two"]), inferred_letter("it is One", ["one", "two"])
        ('B', 'A')
        >>> inferred_letter("A or B", ["one", "two"]) is None
        True
    """
    if "Failed to obtain answer via API" not in text:
        if any(refusal in text for refusal in _REFUSALS):
            return "Z"
        words = set(text.translate(_MARKS).split())
        letters = [letter for letter in ascii_uppercase[: len(choices)] if letter in words]
        if len(letters) == 1:
            return letters[0]
        if not letters and "Z" in words:
            return "Z"
    lowered = text.lower()
    found = [i for i, choice in enumerate(choices) if choice.lower() in lowered]
    return ascii_uppercase[found[0]] if len(found) == 1 else None


def _published(item: ScoringItem) -> float | None:
    """Return 1 or 0 where the authors' script needs no judge, else None."""
    kind, gold = _kind(item), item.references[0]
    if kind == "option":
        letter = inferred_letter(item.text, _choices(item.metadata))
        return None if letter is None else float(letter == _right_letter(item))
    if kind not in ("integer", "float"):
        return None  # lists and texts always go to the judge
    read = int if kind == "integer" else float
    try:
        predicted, right = read(item.text), read(gold)
    except (ValueError, OverflowError):
        return None
    return 1.0 if predicted == right and predicted else None  # a right 0 goes to the judge, too


def _corrected(item: ScoringItem) -> float | None:
    kind, gold = _kind(item), item.references[0]
    if kind == "option":
        letter = _chosen_letter(item)
        return None if letter is None else float(letter == _right_letter(item))
    if kind in ("integer", "float"):
        numbers = _numbers(item.text)
        return _close(numbers[-1:], _numbers(gold), item.metadata) if numbers else None
    if kind == "list":
        lists = _LIST.findall(item.text)
        return _close(_numbers(lists[-1]), _numbers(gold), item.metadata) if lists else None
    return float(same_tidy(item.text, gold))


def _chosen_letter(item: ScoringItem) -> str | None:
    """Return the option that an answer names by its letter, else by its whole text."""
    choices = _choices(item.metadata)
    letter = option_letter(item.text, ascii_uppercase[: len(choices)])
    if letter is not None:
        return letter
    text = tidy(item.text)
    found = [i for i, choice in enumerate(choices) if has_words(text, tidy(choice))]
    return ascii_uppercase[found[0]] if len(found) == 1 else None


def _close(numbers: list[float], gold: list[float], metadata: Mapping[str, Any]) -> float:
    """Return whether numbers are equal after rounding to the stated number of decimals."""
    precision = metadata.get("precision")
    tolerance = 0.0
    if isinstance(precision, int | float) and not isinstance(precision, bool):
        tolerance = 0.5 * 10.0 ** -min(max(float(precision), 0.0), 12.0)
    same = len(numbers) == len(gold) and bool(gold)
    pairs = zip(numbers, gold, strict=False)
    return float(same and all(abs(one - two) <= tolerance + _SAME for one, two in pairs))


def _numbers(text: str) -> list[float]:
    found = (match.replace(",", "").replace("\u2212", "-") for match in _NUMBER.findall(text))
    return [float(number) for number in found]


def _kind(item: ScoringItem) -> str:
    """Return option, integer, float, list or text.

    Raises:
        ValueError: If the metadata lack the types of question and answer.
    """
    for key in ("question_type", "answer_type"):
        if not isinstance(item.metadata.get(key), str):
            raise ValueError(
                f"the rule of Math needs the {key!r} of every sample: none is known where the "
                f"reference is {item.references[0]!r}"
            )
    is_option = item.metadata["question_type"] == "multi_choice"
    return "option" if is_option else str(item.metadata["answer_type"])


def _choices(metadata: Mapping[str, Any]) -> list[str]:
    choices = metadata.get("choices")
    if not isinstance(choices, Sequence) or isinstance(choices, str) or not 1 <= len(choices) <= 26:
        raise ValueError(f"the rule of Math needs 1 to 26 'choices', got {choices!r}")
    return [str(choice) for choice in choices]


def _right_letter(item: ScoringItem) -> str:
    """Return the letter of the right option; the reference is its text, or the letter."""
    choices, gold = _choices(item.metadata), item.references[0]
    if gold in choices:
        return ascii_uppercase[choices.index(gold)]
    letter = gold.strip().upper()
    if len(letter) == 1 and letter in ascii_uppercase[: len(choices)]:
        return letter
    raise ValueError(f"reference {gold!r} is neither one of the 'choices' nor the letter of one")


MATH = Rule(
    published=_published,
    corrected=_corrected,
    does="without the authors' judge (GPT-4o-mini), hence a lower bound: options by the only lone "
    "letter, else by the only option text that occurs; integers and floats if the whole answer is "
    "the number; all else would go to the judge and counts as unreadable; questions without an "
    "answer are not counted",
    fixes=(
        "the last number of an answer counts, within half a unit of the stated `precision`; a "
        "right 0 counts",
        "the last list in square brackets is compared number by number, other texts after margins, "
        "case and a final period are removed; the authors' code counts both as wrong",
        "options are read as letters by the common reader ('not A' is passed over), else as whole "
        "words",
        BLANK_FIX,
    ),
    source=FOLDER + "eval_math.py",
    needs=("question_type", "answer_type", "choices", "precision"),
)
