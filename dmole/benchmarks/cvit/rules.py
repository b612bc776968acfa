"""The rules of CVIT: CoIN's, with the form that each task asks answers to have."""

from __future__ import annotations

from dataclasses import replace

from dmole.benchmarks.coin import rules as coin
from dmole.benchmarks.shared.rule import Rule, any_reference

_FOLDER = "SMoLoRA, llava/eval/SMoLoRA/Eval/"


def imagenet(prediction: str, label: str) -> bool:
    """Return whether one text contains the other, in any case.

    Example:
        >>> imagenet("", "tench"), imagenet("A Tench", "tench"), imagenet("trout", "tench")
        (True, True, False)
    """
    first, second = prediction.lower(), label.lower()
    return first in second or second in first


SCIENCEQA = replace(coin.SCIENCEQA, source=_FOLDER + "eval_science_qa.py", form="letter")

TEXTVQA = replace(coin.TEXTVQA, source=_FOLDER + "eval_textvqa.py", form="words")

IMAGENET = Rule(
    published=any_reference(imagenet),
    corrected=any_reference(coin.imagenet_corrected),
    does="right if the label occurs in the answer or the answer in the label, in any case; "
    "paired by position in the file",
    fixes=(
        "an empty answer is wrong, not right",
        "only whole words count: 'c' is not found in 'cat'",
        "margins and a final period are ignored",
        "answers and labels are paired by id",
    ),
    source=_FOLDER + "eval_ImagetNet.py",
    pairing="position",
    form="words",
)

GQA = replace(coin.GQA, source=_FOLDER + "eval_gqa.py", form="words")

VQAV2 = replace(coin.VQAV2, source=_FOLDER + "eval_vqav2.py", form="words")
