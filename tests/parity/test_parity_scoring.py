"""Our task metrics against figures recorded by running the published scoring code.

Each item is compared, then the whole. Where we differ on purpose the test says where and why.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dmole.metrics import CIDEr, Contains, ExactMatch, IoU, VQASoft
from dmole.metrics.captions import tokenize_ptb, tokenize_python
from dmole.metrics.vqa import normalize_answer

Load = Callable[[str], dict[str, Any]]
needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="no Java on the path")


@pytest.fixture
def load(fixtures_dir: Path) -> Load:
    def read(name: str) -> dict[str, Any]:
        path = fixtures_dir / "scoring" / f"{name}.json"
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return content

    return read


def answers(item: dict[str, Any]) -> list[str]:
    gold = item.get("answers", item.get("answer"))
    return gold if isinstance(gold, list) else [gold]


def mismatches(items: list[dict[str, Any]], ours: list[float], official: list[float]) -> list[Any]:
    triples = zip(items, ours, official, strict=True)
    return [(item, mine, theirs) for item, mine, theirs in triples if abs(mine - theirs) > 1e-9]


def test_normalizer_equals_evalai_on_every_string(load: Load) -> None:
    items = load("evalai_normaliser")["items"]
    assert len(items) == 397
    assert [normalize_answer(item["text"]) for item in items] == [i["official"] for i in items]


@pytest.mark.parametrize("name", ["evalai_vqa_soft", "dmole_vizwiz_soft"])
def test_soft_accuracy_equals_the_published_one(load: Load, name: str) -> None:
    data = load(name)
    items = data["items"]
    score = VQASoft().score([item["pred"] for item in items], [answers(item) for item in items])
    official = [
        100 * (i["official"]["score"] if isinstance(i["official"], dict) else i["official"])
        for i in items
    ]
    assert len(items) == 300
    assert not mismatches(items, score.per_sample, official)
    assert score.value == pytest.approx(100 * data["aggregate"]["accuracy"], abs=1e-9)


@pytest.mark.parametrize("name", ["dmole_kvqa_exact", "dmole_ocrvqa_exact"])
def test_exact_match_equals_the_published_one(load: Load, name: str) -> None:
    data = load(name)
    items = data["items"]
    score = ExactMatch().score([item["pred"] for item in items], [answers(item) for item in items])
    assert len(items) == 300
    assert not mismatches(items, score.per_sample, [100 * item["official"] for item in items])
    assert score.value == pytest.approx(100 * data["aggregate"]["accuracy"], abs=1e-9)


def test_contains_with_a_refusal_equals_the_medical_rule(load: Load) -> None:
    # We differ on purpose where the reference is blank: there the published rule accepts anything.
    items = [item for item in load("mcit_med")["items"] if item["answer"].strip()]
    assert len(items) >= 296
    metric = Contains(refusal="Unanswerable")
    score = metric.score([item["pred"] for item in items], [answers(item) for item in items])
    assert not mismatches(items, score.per_sample, [100 * item["official"] for item in items])


def test_grounding_by_numbers_equals_the_coin_regex_rule(load: Load) -> None:
    # We differ on purpose where the published pattern misreads a number: it drops minus signs,
    # reads 2e-01 as two numbers and finds none in 0.00.
    misread = re.compile(r"-|\d[eE]|\b0\.0+\b")
    items = [i for i in load("coin_grounding_regex")["items"] if not misread.search(i["pred"])]
    assert len(items) >= 255
    metric = IoU(inclusive=False, parser="numbers", box_format="unit", reference_format="unit")
    overlaps = [metric.overlap(item["pred"], [item["answer_bbox"]]) for item in items]
    for item, overlap in zip(items, overlaps, strict=True):
        assert (overlap is not None) == item["official"]["parsed"], item
        assert (overlap or 0.0) == pytest.approx(item["official"]["iou"] or 0.0, abs=1e-9), item
    score = metric.score([i["pred"] for i in items], [[i["answer_bbox"]] for i in items])
    assert not mismatches(items, score.per_sample, [100 * i["official"]["score"] for i in items])


def test_strict_grounding_equals_the_dmole_rule(load: Load) -> None:
    data = load("dmole_skvg_grounding")
    items = data["items"]
    metric = IoU(parser="strict", reference_format="pixels")
    references = [[f"{i['gt_bbox']} size={i['width']}x{i['height']}"] for i in items]
    score = metric.score([item["pred"] for item in items], references)
    assert len(items) == 309
    assert not mismatches(items, score.per_sample, [100 * i["official"]["correct"] for i in items])
    assert score.value == pytest.approx(100 * data["aggregate"]["precision_at_1"], abs=1e-9)
    for item, reference in zip(items, references, strict=True):
        overlap = metric.overlap(item["pred"], reference)
        assert (overlap or 0.0) == pytest.approx(item["official"]["iou"] or 0.0, abs=1e-5), item


@needs_java
def test_ptb_tokens_equal_those_of_coco_evaluation(load: Load) -> None:
    items = load("captions_coco")["items"]
    official = [item["official"] for item in items]
    predicted = tokenize_ptb([item["pred"] for item in items])
    accepted = tokenize_ptb([text for item in items for text in item["references"]])
    assert predicted == [tokens["pred_tokenised"] for tokens in official]
    assert accepted == [text for tokens in official for text in tokens["references_tokenised"]]


@needs_java
def test_cider_with_ptb_equals_coco_evaluation(load: Load) -> None:
    data = load("captions_coco")
    items = data["items"]
    score = CIDEr("ptb").score([i["pred"] for i in items], [i["references"] for i in items])
    official = [100 * item["official"]["cider"] for item in items]
    assert score.per_sample == pytest.approx(official, abs=1e-4)
    assert score.value == pytest.approx(data["aggregate"]["CIDEr_x100"], abs=1e-4)


def test_cider_without_java_stays_close_to_coco_evaluation(load: Load) -> None:
    # Not equal on purpose: marks such as "!!!", words to the Java tokenizer, are no words to ours.
    data = load("captions_coco")
    items = data["items"]
    score = CIDEr("python").score([i["pred"] for i in items], [i["references"] for i in items])
    assert score.value == pytest.approx(data["aggregate"]["CIDEr_x100"], abs=0.5)
    differing = [
        item["id"]
        for item in items
        if tokenize_python(item["pred"]) != item["official"]["pred_tokenised"]
    ]
    assert len(differing) <= 2
