"""An answer that is not there or cannot be read earns no point, and every metric counts it."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

from dmole.benchmarks.registry import GENERAL, PROFILED, build_metric
from dmole.benchmarks.ucit.captions import UCITCaption
from dmole.metrics import TaskMetric, TaskScore
from dmole.metrics.base import scoring_facts
from dmole.metrics.task_metrics import CaptionMetric

METADATA = {
    "choices": ["a cat", "a dog"],
    "image": "d/MapQA_1.png",
    "question": "Which states are red?",
    "width": 100,
    "height": 100,
    "question_type": "free_form",
    "answer_type": "text",
}
NEEDS_JAVA = {"meteor", "ucit_caption"}
NAMES = [
    pytest.param(name, marks=[pytest.mark.slow] if name in NEEDS_JAVA else [])  # METEOR is slow
    for name in sorted({*GENERAL, *PROFILED})
]
BOX = "[0.1, 0.1, 0.5, 0.5]"


def build(name: str) -> TaskMetric:
    if name in NEEDS_JAVA and shutil.which("java") is None:
        pytest.skip("no Java on the path")
    metric = build_metric(name)
    return type(metric)("python") if isinstance(metric, CaptionMetric | UCITCaption) else metric


def reference_of(name: str, text: str) -> str:
    if "grounding" in name or name == "iou":
        return BOX
    special = {"mmmu": "A", "pope": "yes", "mme": "Yes image=count/1.jpg"}
    return special.get(name, "A" if "choice" in name or "science" in name else text)


def score_of(name: str, predictions: list[str | None], text: str) -> TaskScore:
    count = len(predictions)
    references = [[reference_of(name, text)]] * count
    return build(name).score(predictions, references, [METADATA] * count)


@pytest.mark.parametrize("name", NAMES)
def test_every_metric_counts_missing_and_blank_answers(name: str) -> None:
    score = score_of(name, ["", " \n", None, "two red dogs"], "red dogs")
    assert score.details["missing"] == 1
    assert float(score.details["unparsable"]) >= 2
    facts = scoring_facts({"task": score})["scoring"]["task"]
    assert facts["unparsable"] == score.details["unparsable"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("reference", ["", "red dogs"])
def test_a_blank_answer_earns_nothing_but_in_published_profiles(name: str, reference: str) -> None:
    score = score_of(name, ["", " ", None], reference)
    if name in PROFILED:
        assert score.profiles["corrected"].per_sample == [0.0] * 3
        assert score.profiles["corrected"].value == 0.0
    else:
        assert score.per_sample == [0.0] * 3
        assert score.value == 0.0


@pytest.mark.parametrize("name", sorted({*GENERAL, *PROFILED} - NEEDS_JAVA))
def test_a_missing_answer_never_earns_a_point(name: str) -> None:
    assert score_of(name, [None], "").per_sample == [0.0]


def test_the_count_is_that_of_the_reported_profile() -> None:
    predictions = ["A dog.", "Yes", "no"]
    references = [["yes"], ["yes"], ["no"]]
    published = build_metric("pope").score(predictions, references)
    assert (published.value, published.details["unparsable"]) == (100.0, 0)
    corrected = build_metric("pope:corrected").score(predictions, references)
    assert corrected.per_sample == [0.0, 100.0, 100.0]
    assert corrected.details["unparsable"] == corrected.details["unparsable_corrected"] == 1
    assert corrected.details["yes_share"] == pytest.approx(100 / 3)


@pytest.mark.parametrize(
    ("metric", "prediction", "reference", "value", "unparsable"),
    [
        ("relaxed_accuracy:corrected", "about 100", "100", 0.0, 1),
        ("relaxed_accuracy:corrected", "nan", "100", 0.0, 1),
        ("relaxed_accuracy:corrected", "inf", "100", 0.0, 1),
        ("relaxed_accuracy:corrected", "1,04", "104", 0.0, 1),
        ("relaxed_accuracy:corrected", "one", "1", 100.0, 0),
        ("relaxed_accuracy:corrected", "1 040", "1000", 100.0, 0),
        ("coin_grounding:corrected", "(0.1,0.1),(0.5,0.5)", BOX, 100.0, 0),
        ("coin_grounding:corrected", "[0.5, 0.5, 0.1, 0.1]", BOX, 0.0, 1),
        ("coin_grounding:corrected", "[0.1, 0.1, 0.1, 0.5]", BOX, 0.0, 1),
        ("coin_grounding:corrected", "[100, 100, 500, 500]", BOX, 0.0, 1),
        ("coin_textvqa:corrected", "?", "", 0.0, 1),
        ("vqa_soft", "the", "a", 0.0, 1),
        ("iou", "[0.5, 0.5, 0.1, 0.1]", BOX, 0.0, 1),
        ("iou", "[1200, 300, 1900, 900]", BOX, 0.0, 1),
        ("iou", "left", BOX, 0.0, 1),
        ("mmmu", "a cat", "A", 0.0, 1),
        ("mme:corrected", "note", "No image=count/1.jpg", 0.0, 1),
        ("rouge_l", "...", "...", 0.0, 1),
    ],
)
def test_what_cannot_be_read_is_counted(
    metric: str, prediction: str, reference: str, value: float, unparsable: int
) -> None:
    score = build_metric(metric).score([prediction], [[reference]], [METADATA])
    assert (score.value, score.details["unparsable"]) == (value, unparsable)


@pytest.mark.parametrize("value", [4, True, float("nan"), ["a"], {"a": 1}])
def test_an_answer_that_is_no_text_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"predictions\[1\] must be text or None, got"):
        build_metric("exact_match").score(["a", value], [["a"], ["b"]])
    with pytest.raises(ValueError, match=r"references\[0\] must hold texts only"):
        build_metric("exact_match").score(["a"], [[value]])
