"""The rules of the D-MoLE nine whose answers are words (KVQA, OCR-VQA, VizWiz)."""

from __future__ import annotations

from dmole.metrics.base import Item
from dmole.metrics.matching import exact_match
from dmole.metrics.rules.coin import same_tidy, soft_rule
from dmole.metrics.rules.rule import Rule, any_reference


def _exact(item: Item) -> float:
    return exact_match(item.text, item.references)


EXACT = Rule(
    published=_exact,
    corrected=any_reference(same_tidy),
    does="trimmed and lower-cased, equal to any accepted answer",
    fixes=("double spaces and a final period are ignored on both sides",),
    source="D-MoLE, eval/vqa/evaluate_vqa.py",
)

VIZWIZ_SOFT = soft_rule("D-MoLE, eval/vqa/textvqa_eval.py, evaluate_vqa.py")
