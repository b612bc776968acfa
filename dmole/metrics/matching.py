"""Compares answers as strings: equality and containment."""

from __future__ import annotations

from collections.abc import Sequence


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """Return 1.0 if prediction and any reference are equal, both trimmed and in lower case.

    A blank prediction equals nothing.

    Args:
        prediction: The answer to score.
        references: Accepted answers.

    Source:
        The rule of OCR-VQA and KVQA in the D-MoLE release (`evaluate_vqa.py`), in which a blank
        prediction equals a blank reference. Lower-casing, not full case folding: "STRASSE" does
        not equal "straße".

    Example:
        >>> exact_match(" Red ", ["blue", "red"])
        1.0
    """
    answer = prediction.strip().lower()
    accepted = (reference.strip().lower() for reference in references)
    return float(answer != "" and answer in accepted)


def contains(prediction: str, references: Sequence[str], refusal: str | None = None) -> float:
    """Return 1.0 if any reference occurs in the prediction, ignoring case.

    Args:
        prediction: The answer to score.
        references: Accepted answers.
        refusal: A text (case-sensitive); a prediction that contains it is wrong.

    Source:
        Med of MLLM-DCL, there with the refusal "Unanswerable" (MCITlib `eval_pvqa.py`). One case
        differs: here a blank reference occurs in no prediction, there in every one.

    Example:
        >>> contains("It is a red ball.", ["Red"])
        1.0
    """
    if refusal is not None and refusal in prediction:
        return 0.0
    answer = prediction.lower()
    accepted = (reference.lower() for reference in references if reference.strip())
    return float(any(reference in answer for reference in accepted))
