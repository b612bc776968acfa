"""The rules of CoIN whose answers are words or letters."""

from __future__ import annotations

import re
from string import ascii_uppercase

from dmole.benchmarks.shared.options import LETTERS, allowed_letters, judge_letter
from dmole.benchmarks.shared.rule import Rule, any_reference, has_words, tidy
from dmole.benchmarks.shared.words import (
    BLANK_FIX,
    REFUSAL,
    same_tidy,
    same_upper,
    soft_rule,
)
from dmole.metrics.base import ScoringItem
from dmole.metrics.readers import option_letter

_FOLDER = "CoIN, ETrain/Eval/LLaVA/CoIN/"

_LONE = re.compile(r"\b\w\b")
_TIDY_FIX = "margins, double spaces and a final period are ignored on both sides"


def imagenet(prediction: str, label: str) -> bool:
    """Return whether one text contains the other, case-sensitive.

    Example:
        >>> imagenet("", "tench"), imagenet("a tench", "tench")
        (True, True)
    """
    return label in prediction or prediction in label


def imagenet_corrected(prediction: str, label: str) -> bool:
    """Return whether one text contains the other as whole words; a blank answer contains none.

    Example:
        >>> imagenet_corrected("", "tench"), imagenet_corrected("Tench.", "tench")
        (False, True)
    """
    answer, target = tidy(prediction), tidy(label)
    return has_words(answer, target) or has_words(target, answer)


def gqa(prediction: str, answer: str) -> bool:
    """Return whether the prediction in lower case without final periods equals the answer.

    Example:
        >>> gqa("Yes.", "yes"), gqa("yes", "Yes")
        (True, False)
    """
    return prediction.rstrip(".").lower() == answer


def ocrvqa(prediction: str, answer: str) -> bool:
    """Return whether both are equal in lower case and the prediction is not a refusal.

    Example:
        >>> ocrvqa("Unanswerable", "Unanswerable")
        False
    """
    return REFUSAL not in prediction and prediction.lower() == answer.lower()


def scienceqa_letter(text: str) -> str | None:
    """Return the letter as parsed by CoIN; it may be any single character, or None.

    Example:
        >>> scienceqa_letter("It is a rock"), scienceqa_letter("B. a rock")
        ('A', 'B')
    """
    if text in LETTERS and len(text) == 1:
        return text
    if text[1:3] == ". " and text[0] in ascii_uppercase:
        return text[0]
    match = _LONE.search(text)
    return match[0].upper() if match else None


def _scienceqa(item: ScoringItem) -> float | None:
    return judge_letter(item, scienceqa_letter(item.text))


def _scienceqa_corrected(item: ScoringItem) -> float | None:
    return judge_letter(item, option_letter(item.text, allowed_letters(item)))


TEXTVQA = soft_rule(_FOLDER + "m4c_evaluator.py, eval_textvqa.py")

IMAGENET = Rule(
    published=any_reference(imagenet),
    corrected=any_reference(imagenet_corrected),
    does="right if the label occurs in the answer or the answer in the label, case-sensitive; "
    "paired by position in the file",
    fixes=(
        "an empty answer is wrong, not right",
        "only whole words count: 'c' is not found in 'cat'",
        "case, margins and a final period are ignored",
        "answers and labels are paired by id",
    ),
    source=_FOLDER + "eval_ImagetNet.py",
    pairing="position",
)

GQA = Rule(
    published=any_reference(gqa),
    corrected=any_reference(same_tidy),
    does="the answer in lower case without final periods equals the gold one; questions without "
    "an answer are not counted",
    fixes=("the gold answer is lower-cased too", _TIDY_FIX, BLANK_FIX),
    source=_FOLDER + "convert_gqa_for_eval.py, eval_gqa.py",
)

VIZWIZ = Rule(
    published=any_reference(same_upper),
    corrected=any_reference(same_tidy),
    does="equal in upper case, not trimmed; questions without an answer are not counted",
    fixes=(_TIDY_FIX, BLANK_FIX),
    source=_FOLDER + "eval_vizwiz.py",
)

VQAV2 = Rule(
    published=any_reference(same_upper),
    corrected=any_reference(same_tidy),
    does="equal in upper case, not trimmed; questions without an answer are not counted",
    fixes=(_TIDY_FIX, BLANK_FIX),
    source=_FOLDER + "eval_vqav2.py",
)

OCRVQA = Rule(
    published=any_reference(ocrvqa),
    corrected=any_reference(same_tidy),
    does="equal in lower case, not trimmed; an answer holding 'Unanswerable' is wrong",
    fixes=("'Unanswerable' is right where it is the gold answer", _TIDY_FIX, BLANK_FIX),
    source=_FOLDER + "eval_ocrvqa.py",
)

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
        "a letter that the answer rules out ('not A') is passed over",
    ),
    source="CoIN, ETrain/Eval/LLaVA/CoIN/eval_science_qa.py",
    missing="wrong",
    needs=("choices", "answer_index"),
)
