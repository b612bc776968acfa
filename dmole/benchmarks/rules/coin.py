"""The rules of CoIN whose answers are words; its grounding and ScienceQA are elsewhere."""

from __future__ import annotations

from dmole.benchmarks.rules.rule import Rule, any_reference, has_words, tidy
from dmole.metrics.base import Item
from dmole.metrics.vqa import soft_accuracy

_FOLDER = "CoIN, ETrain/Eval/LLaVA/CoIN/"
REFUSAL = "Unanswerable"

_TIDY_FIX = "margins, double spaces and a final period are ignored on both sides"


def imagenet(prediction: str, label: str) -> bool:
    """Return whether one text holds the other, in the case it is written in.

    Example:
        >>> imagenet("", "tench"), imagenet("a tench", "tench")
        (True, True)
    """
    return label in prediction or prediction in label


def imagenet_corrected(prediction: str, label: str) -> bool:
    """Return whether one text holds the other as whole words; a blank answer holds nothing.

    Example:
        >>> imagenet_corrected("", "tench"), imagenet_corrected("Tench.", "tench")
        (False, True)
    """
    answer, target = tidy(prediction), tidy(label)
    return has_words(answer, target) or has_words(target, answer)


def gqa(prediction: str, answer: str) -> bool:
    """Return whether the lower-cased prediction without final periods is the answer.

    Example:
        >>> gqa("Yes.", "yes"), gqa("yes", "Yes")
        (True, False)
    """
    return prediction.rstrip(".").lower() == answer


def same_upper(prediction: str, answer: str) -> bool:
    """Return whether both are equal in upper case, untrimmed.

    Example:
        >>> same_upper("No", "no"), same_upper("no ", "no")
        (True, False)
    """
    return prediction.upper() == answer.upper()


def same_tidy(prediction: str, answer: str) -> bool:
    """Return whether both are equal but for case, spaces at the margins and a final period."""
    return tidy(prediction) == tidy(answer)


def ocrvqa(prediction: str, answer: str) -> bool:
    """Return whether both are equal in lower case and the prediction is no refusal.

    Example:
        >>> ocrvqa("Unanswerable", "Unanswerable")
        False
    """
    return REFUSAL not in prediction and prediction.lower() == answer.lower()


def _soft(item: Item) -> float:
    return soft_accuracy(item.text, item.references)


def _soft_corrected(item: Item) -> float:
    return soft_accuracy(item.text, item.references, profile="corrected")


def soft_rule(source: str) -> Rule:
    """Return the rule of soft accuracy over ten human answers, as kept in a repository's file."""
    return Rule(
        published=_soft,
        corrected=_soft_corrected,
        does="soft accuracy over ten human answers after the EvalAI normalizer (k equal answers "
        "give 0, .3, .6, .9, 1)",
        fixes=(
            "a period goes unless digits stand on both sides, not only behind it",
            "all such periods go, not only the first 32",
            "an answer of articles alone ('A') is kept, so that it does not equal an empty one",
            '"somebody\'d" keeps its apostrophe like the other contractions',
        ),
        source=source,
    )


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
    fixes=("the gold answer is lower-cased too", _TIDY_FIX),
    source=_FOLDER + "convert_gqa_for_eval.py, eval_gqa.py",
)

VIZWIZ = Rule(
    published=any_reference(same_upper),
    corrected=any_reference(same_tidy),
    does="equal in upper case, not trimmed; questions without an answer are not counted",
    fixes=(_TIDY_FIX,),
    source=_FOLDER + "eval_vizwiz.py",
)

VQAV2 = Rule(
    published=any_reference(same_upper),
    corrected=any_reference(same_tidy),
    does="equal in upper case, not trimmed; questions without an answer are not counted",
    fixes=(_TIDY_FIX,),
    source=_FOLDER + "eval_vqav2.py",
)

OCRVQA = Rule(
    published=any_reference(ocrvqa),
    corrected=any_reference(same_tidy),
    does="equal in lower case, not trimmed; an answer holding 'Unanswerable' is wrong",
    fixes=("'Unanswerable' is right where it is the gold answer", _TIDY_FIX),
    source=_FOLDER + "eval_ocrvqa.py",
)
