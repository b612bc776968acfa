"""The rules of OCR, visual perception and apps, three of the four abilities of MLLM-ACL."""

from __future__ import annotations

from dmole.benchmarks.shared.rule import Rule, any_reference, has_words, tidy
from dmole.benchmarks.shared.words import BLANK_FIX
from dmole.metrics.base import ScoringItem
from dmole.metrics.readers import option_letter

FOLDER = "MLLM-CL, ETrain/Eval/LLaVA/CoIN/"
FORMULA = "Handwritten Mathematical Expression Recognition"
"""The ``answer_type`` of OCRBench whose answers are formulas."""
_WHOLE_WORDS = "only whole words count: 'no' is not found in 'north', nor '3' in '13'"
_BLANK_GOLD = "a blank gold answer matches nothing"


def text_occurs(prediction: str, answer: str) -> bool:
    """Return whether a read text occurs in the prediction, in any case, without line breaks.

    Example:
        >>> text_occurs("The sign says STOP", "stop"), text_occurs("north", "no")
        (True, True)
    """
    return _one_line(answer) in _one_line(prediction)


def formula_occurs(prediction: str, answer: str) -> bool:
    """Return whether a formula occurs in the prediction, without spaces, in its own case.

    Example:
        >>> formula_occurs("x ^ 2 + 1", "x^2"), formula_occurs("X^2", "x^2")
        (True, False)
    """
    return _solid(answer) in _solid(prediction)


def _one_line(text: str) -> str:
    return text.lower().strip().replace("\n", "")


def _solid(text: str) -> str:
    return text.strip().replace(" ", "").replace("\n", "")


def _is_formula(item: ScoringItem) -> bool:
    return item.metadata.get("answer_type") == FORMULA


def _ocr(item: ScoringItem) -> float | None:
    return any_reference(formula_occurs if _is_formula(item) else text_occurs)(item)


def _ocr_corrected(item: ScoringItem) -> float | None:
    return any_reference(_formula_corrected if _is_formula(item) else _words_occur)(item)


def _formula_corrected(prediction: str, answer: str) -> bool:
    formula = "".join(answer.split())
    return bool(formula) and formula in "".join(prediction.split())


def _words_occur(prediction: str, answer: str) -> bool:
    return has_words(tidy(prediction), tidy(answer))


def perceived(prediction: str, answer: str) -> bool:
    """Return whether the answer occurs in the prediction, both without spaces and periods.

    Example:
        >>> perceived("There are 13.", "3"), perceived("(A) Two", "(a)")
        (True, True)
    """
    return _bare(answer) in _bare(prediction)


def _bare(text: str) -> str:
    return _solid(text.lower()).replace(".", "")


def chosen(prediction: str, answer: str) -> bool:
    """Return whether the prediction, trimmed and in upper case, is the letter of the answer.

    Example:
        >>> chosen(" b ", "B"), chosen("B.", "B")
        (True, False)
    """
    return prediction.strip().upper() == answer.strip().upper()


def _chosen_corrected(item: ScoringItem) -> float | None:
    letter = option_letter(item.text, "ABCDEFGHI")
    right = {reference.strip().upper() for reference in item.references}
    return None if letter is None else float(letter in right)


OCR = Rule(
    published=_ocr,
    corrected=_ocr_corrected,
    does="a gold answer occurs anywhere in the prediction, in any case, line breaks removed; "
    "formulas (`answer_type`) in their own case, spaces removed; questions without an answer are "
    "not counted",
    fixes=(
        _WHOLE_WORDS,
        "a line break parts words; all white space is removed from formulas",
        _BLANK_GOLD,
        BLANK_FIX,
    ),
    source=FOLDER + "eval_ocr.py",
    needs=("answer_type",),
)

VP = Rule(
    published=any_reference(perceived),
    corrected=any_reference(_words_occur),
    does="the gold answer occurs anywhere in the prediction, both in lower case without spaces, "
    "line breaks and periods; questions without an answer are not counted",
    fixes=(
        _WHOLE_WORDS,
        "spaces and decimal points stay: '3.5' is not '35'",
        _BLANK_GOLD,
        BLANK_FIX,
    ),
    source=FOLDER + "eval_sat.py",
)

APP = Rule(
    published=any_reference(chosen),
    corrected=_chosen_corrected,
    does="the answer, trimmed and in upper case, is the letter; the authors' script writes a file "
    "for the evaluation server and scores nothing, so this comparison is ours; questions without "
    "an answer are wrong",
    fixes=(
        "a letter is read wherever it stands alone: '(B)', 'B.', 'The answer is B'",
        "a letter that the answer rules out ('not A') is passed over",
    ),
    source=FOLDER + "convert_result_to_submission.py",
    missing="wrong",
)
