"""Whether an answer has the form that its question asks for, whatever it says."""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_uppercase
from typing import Literal

from dmole.metrics.base import PROFILES, Profile, ScoringItem
from dmole.metrics.counterparts import OBEDIENCE

AnswerForm = Literal["letter", "words", "sentence"]
"""A letter of an option, one or two words, or a sentence."""

_MOST_WORDS = 2
_LEAST_WORDS = 5


def obeys(item: ScoringItem, form: AnswerForm, profile: Profile = "published") -> bool:
    """Return whether an answer has a form.

    - letter: a single letter A to Z in any case, without a mark.
    - words: at most two words, or equal to an accepted answer in any case.
    - sentence: ends in a period, and has five words or more or is part of an accepted answer.

    A blank answer has the form of words in the published profile and no form in the corrected one.

    Args:
        item: The answer and the accepted ones.
        form: The form.
        profile: The profile.

    Source:
        SMoLoRA, llava/eval/SMoLoRA/Eval/eval_scienceqa_instruction.py, eval_vqa_instruction.py and
        eval_caption_instruction.py.

    Example:
        >>> obeys(ScoringItem("b", ("A",)), "letter"), obeys(ScoringItem("B.", ("B",)), "letter")
        (True, False)
        >>> obeys(ScoringItem("It is red", ("red",)), "words")
        False
        >>> obeys(ScoringItem("A dog.", ("A dog.",)), "sentence")
        True
    """
    text = item.text.strip()
    if not text and profile == "corrected":
        return False
    if form == "letter":
        return len(text) == 1 and text.upper() in ascii_uppercase
    words, lowered = len(text.split()), text.lower()
    accepted = [reference.lower() for reference in item.references]
    if form == "words":
        return words <= _MOST_WORDS or lowered in accepted
    known = any(lowered in reference for reference in accepted)
    return text.endswith(".") and (words >= _LEAST_WORDS or known)


def obedience(
    items: Sequence[ScoringItem], form: AnswerForm, selected: Profile, *, skips: bool
) -> dict[str, float | str]:
    """Return the details of a score that state how many answers have the requested form.

    Args:
        items: The samples.
        form: The requested form.
        selected: The reported profile.
        skips: Whether the published profile leaves out samples without an answer; else they have
            no form. The corrected profile always counts them.

    Returns:
        ``obedient_published``, ``obedient_corrected``, and ``obedient`` for the reported profile,
        in percent.
    """
    answered = [item for item in items if item.prediction is not None]
    shares: dict[str, float | str] = {}
    for profile in PROFILES:
        obedient = sum(obeys(item, form, profile) for item in answered)
        count = len(answered) if skips and profile == "published" else len(items)
        shares[f"{OBEDIENCE}_{profile}"] = 100.0 * obedient / count if count else 0.0
    return shares | {OBEDIENCE: shares[f"{OBEDIENCE}_{selected}"]}
