"""The rule of CoIN-ASD that differs from CoIN's: option letters of ScienceQA."""

from __future__ import annotations

import re
from string import ascii_uppercase

from dmole.benchmarks.shared.options import LETTERS, allowed_letters, judge_letter
from dmole.benchmarks.shared.rule import Rule
from dmole.metrics.base import ScoringItem
from dmole.metrics.readers import option_letter

_STATED = re.compile(rf"The answer is ([{ascii_uppercase}]).")


def stated_letter(text: str) -> str | None:
    """Return the letter as parsed by SEFE, None if there is none or the answer states several.

    Example:
        >>> stated_letter("B. a rock"), stated_letter("The answer is C."), stated_letter("It is C")
        ('B', 'C', None)
    """
    if len(text) == 1 and text in LETTERS:
        return text
    if text[:1] in set(LETTERS) and text[1:3] == ". ":
        return text[0]
    stated = _STATED.findall(text)
    return stated[0] if len(stated) == 1 else None


def _scienceqa(item: ScoringItem) -> float | None:
    return judge_letter(item, stated_letter(item.text))


def _scienceqa_corrected(item: ScoringItem) -> float | None:
    return judge_letter(item, option_letter(item.text, allowed_letters(item)))


SCIENCEQA = Rule(
    published=_scienceqa,
    corrected=_scienceqa_corrected,
    does="the answer itself if it is a letter A-E, else its first character if '. ' follows, else "
    "the letter of the only 'The answer is X' that a further character follows; wrong if that is "
    "no option; questions without an answer are not counted",
    fixes=(
        "a letter is read wherever it stands alone: 'The answer is C', '(C)', 'c'",
        "a letter that the answer rules out ('not A') is passed over",
        "questions without an answer count as wrong",
    ),
    source="SEFE, llava/eval/CoIN/eval_science_qa.py",
    needs=("choices", "answer_index"),
)
