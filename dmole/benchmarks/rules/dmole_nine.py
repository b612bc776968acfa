"""The rules of the D-MoLE nine whose answers are words (KVQA, OCR-VQA, VizWiz)."""

from __future__ import annotations

from dmole.benchmarks.rules.coin import same_tidy, soft_rule
from dmole.benchmarks.rules.rule import Rule, any_reference
from dmole.metrics.base import Item
from dmole.metrics.matching import exact_match


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
