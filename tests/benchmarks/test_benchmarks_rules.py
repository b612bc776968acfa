from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from benchmark_table import LEARNED
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser

from dmole.benchmarks.metrics import ProfiledMetric, RuleMetric
from dmole.benchmarks.registry import GENERAL, PROFILED, RULES, benchmark_tasks, build_metric
from dmole.metrics.base import TaskMetric

GALLERY = {"choices": ["a cat", "a dog", "dark red"]}
MAP = {"image": "d/MapQA_1.png", "question": "Which states are red?"}
SQUARE = {"width": 100, "height": 100}
FORMULA = {"answer_type": "Handwritten Mathematical Expression Recognition"}
OPTION = {"question_type": "multi_choice", "answer_type": "text", **GALLERY}
FREE = {"question_type": "free_form", "precision": None}
INTEGER, LIST = {**FREE, "answer_type": "integer"}, {**FREE, "answer_type": "list"}
ONE_DECIMAL = {**FREE, "answer_type": "float", "precision": 1.0}
TEN = [*["yes"] * 4, *["no"] * 6]


@pytest.mark.parametrize(
    ("metric", "prediction", "reference", "metadata", "published", "corrected"),
    [
        # what both count
        ("coin_gqa", "Yes.", "yes", {}, 100, 100),
        ("coin_grounding", "[0.10, 0.10, 0.50, 0.50]", "[0.1, 0.1, 0.5, 0.5]", {}, 100, 100),
        ("coin_scienceqa", "(B)", "B", {}, 100, 100),
        ("dmole_multichoice", "B.", "a dog", GALLERY, 100, 100),
        ("mllm_dcl_sci", "Ohio,Iowa", "ohio,utah", MAP, 50, 50),
        ("anls", "fivc dogs", "five dogs", {}, 100 * 8 / 9, 100 * 8 / 9),
        ("relaxed_accuracy", "104", "100", {}, 100, 100),
        ("relaxed_accuracy", "106", "100", {}, 0, 0),
        # every fix
        ("coin_scienceqa", "It is a rock", "A", {}, 100, 0),
        ("coin_scienceqa", "I think C", "C", {}, 0, 100),
        ("coin_scienceqa", "the answer's D", "D", {}, 0, 100),
        ("coin_imagenet", "", "tench", {}, 100, 0),
        ("coin_imagenet", "e", "tench", {}, 100, 0),
        ("coin_imagenet", "Tench.", "tench", {}, 0, 100),
        ("coin_gqa", "Yes", "Yes", {}, 0, 100),
        ("coin_vizwiz", " no. ", "no", {}, 0, 100),
        ("coin_vqav2", "two  dogs", "two dogs", {}, 0, 100),
        ("coin_ocrvqa", "Unanswerable", "Unanswerable", {}, 0, 100),
        ("coin_ocrvqa", "Travel.", "travel", {}, 0, 100),
        ("coin_grounding", "[0.0, 0.0, 0.5, 1.00]", "[0, 0, 0.5, 1]", {}, 100, 100),
        ("coin_grounding", "[1.00, 0.0, 1.50, 1.00]", "[1, 0, 1.5, 1]", {}, 0, 100),
        ("coin_grounding", "It is [0.1, 0.1, 0.9, 0.9]", "[0.1, 0.1, 0.9, 0.9]", {}, 0, 100),
        ("coin_grounding_regex", "[0.00, 0.1, 0.5, 0.5]", "[0.0, 0.1, 0.5, 0.5]", {}, 0, 100),
        ("coin_grounding_regex", "[-0.3, 0.1, 0.5, 0.5]", "[0.3, 0.1, 0.5, 0.5]", {}, 100, 0),
        ("dmole_exact", "red.", "red", {}, 0, 100),
        ("dmole_multichoice", "b", "B", GALLERY, 0, 100),
        ("dmole_multichoice", "Because a dog", "B", GALLERY, 100, 100),
        ("dmole_multichoice", "Because dark red", "C", GALLERY, 0, 100),
        ("dmole_multichoice", "A DOG", "B", GALLERY, 0, 100),
        ("dmole_multichoice", "(C)", "C", GALLERY, 0, 100),
        ("dmole_multichoice", " ", "C", GALLERY, 0, 0),
        ("dmole_grounding", "(10, 20, 300, 400)", "[1, 2, 30, 40]", SQUARE, 0, 100),
        ("dmole_grounding", "[a, b, c, d] [10, 20, 300, 400]", "[1, 2, 30, 40]", SQUARE, 0, 100),
        ("dmole_grounding", "[10,\n20, 300, 400]", "[1, 2, 30, 40]", SQUARE, 0, 100),
        ("mllm_dcl_med", "abnormal", "no", {}, 100, 0),
        ("mllm_dcl_med", "anything", "", {}, 100, 0),
        ("mllm_dcl_med", "Unanswerable", "Unanswerable", {}, 0, 100),
        ("mllm_dcl_rs", "casino", "no", {}, 100, 0),
        ("mllm_dcl_ad", "72.2", "72.2", {}, 0, 100),
        ("mllm_dcl_ad", "a north wind", "no", {}, 100, 0),
        ("mllm_dcl_sci", "Utah, Ohio", "ohio, utah", MAP, 0, 100),
        ("mllm_dcl_sci", "ohio", "ohio,ohio,utah", MAP, 100 * 2 / 3, 50),
        ("mllm_dcl_sci", "utah", "ohio,utah", {**MAP, "question": "which states?"}, 0, 50),
        ("mllm_dcl_sci", "Leaf.", "leaf", {**MAP, "image": "AI2D_1.png"}, 0, 100),
        ("mllm_dcl_fin", "not sure", "not sure", {}, 0, 100),
        ("ucit_exact", " cat", "cat", {}, 0, 100),
        ("anls", "cat    ", "dog", {}, 100 * 4 / 7, 0),
        ("anls_uncut", "cats", "dogs", {}, 25, 25),
        ("relaxed_accuracy", "0.0", "0", {}, 0, 100),
        ("relaxed_accuracy", "$1,040", "1000", {}, 0, 100),
        ("relaxed_accuracy", "50%", "50", {}, 0, 100),
        ("relaxed_accuracy", "Yes.", "yes", {}, 0, 100),
        # MLLM-ACL
        ("mllm_acl_ocr", "The sign says STOP.", "stop", {}, 100, 100),
        ("mllm_acl_ocr", "north", "no", {}, 100, 0),
        ("mllm_acl_ocr", "red\ncar", "redcar", {}, 100, 0),
        ("mllm_acl_ocr", "x ^ 2 + 1", "x^2", FORMULA, 100, 100),
        ("mllm_acl_ocr", "X^2", "x^2", FORMULA, 0, 0),
        ("mllm_acl_ocr", "x\t^2", "x^2", FORMULA, 0, 100),
        ("mllm_acl_ocr", "anything", "", {}, 100, 0),
        ("mllm_acl_vp", "There are 13.", "3", {}, 100, 0),
        ("mllm_acl_vp", "35", "3.5", {}, 100, 0),
        ("mllm_acl_vp", "(A) two", "(a)", {}, 100, 100),
        ("mllm_acl_app", " b ", "B", {}, 100, 100),
        ("mllm_acl_app", "The answer is (B).", "B", {}, 0, 100),
        ("mllm_acl_math", "(B) a dog", "a dog", OPTION, 100, 100),
        ("mllm_acl_math", "It is a DOG", "a dog", OPTION, 100, 100),
        ("mllm_acl_math", "Not A, but B", "a dog", OPTION, 0, 100),
        ("mllm_acl_math", "A or B", "a cat", OPTION, 0, 100),
        ("mllm_acl_math", "Cannot determine the answer: B", "a dog", OPTION, 0, 100),
        ("mllm_acl_math", " 14 ", "14", INTEGER, 100, 100),
        ("mllm_acl_math", "0", "0", INTEGER, 0, 100),
        ("mllm_acl_math", "2 + 12 is 14.", "14", INTEGER, 0, 100),
        ("mllm_acl_math", "1,400", "1400", INTEGER, 0, 100),
        ("mllm_acl_math", "1.44", "1.4", ONE_DECIMAL, 0, 100),
        ("mllm_acl_math", "1.5", "1.4", ONE_DECIMAL, 0, 0),
        ("mllm_acl_math", "so [2007, 2008]", "[2007, 2008]", LIST, 0, 100),
        ("mllm_acl_math", "[2007]", "[2007, 2008]", LIST, 0, 0),
        # TriGap
        ("trigap_anls", " Cats", "dogs", {}, 25, 25),
        ("trigap_anls", "ab  cd", "ab cd", {}, 100 * 5 / 6, 100),
        ("trigap_anls", "", " ", {}, 100, 0),
        # CoIN-ASD
        ("coin_asd_scienceqa", "The answer is C.", "C", {}, 100, 100),
        ("coin_asd_scienceqa", "The answer is C", "C", {}, 0, 100),
        ("coin_asd_scienceqa", "It is a rock", "A", {}, 0, 0),
        ("coin_asd_scienceqa", "The answer is A. The answer is B.", "A", {}, 0, 100),
        # CVIT
        ("cvit_imagenet", "", "tench", {}, 100, 0),
        ("cvit_imagenet", "A Tench", "tench", {}, 100, 100),
        ("cvit_imagenet", "e", "tench", {}, 100, 0),
        ("cvit_scienceqa", "It is a rock", "A", {}, 100, 0),
    ],
)
def test_a_quirk_is_in_one_profile_and_not_in_the_other(
    metric: str,
    prediction: str,
    reference: str,
    metadata: dict[str, Any],
    published: float,
    corrected: float,
) -> None:
    score = build_metric(metric).score([prediction], [[reference]], [metadata])
    found = {name: each.value for name, each in score.profiles.items()}
    assert found == pytest.approx({"published": published, "corrected": corrected})


@pytest.mark.parametrize(
    ("prediction", "answers", "published", "corrected"),
    [
        ("yes", TEN, 100, 100),
        ("A", ["the"] * 10, 100, 0),  # both are nothing but articles
        ("a.5", ["a5"] * 10, 0, 100),
        ("x" + "." * 40, ["x"] * 10, 0, 100),
        ("somebodyd", ["somebody'd"] * 10, 100, 100),
    ],
)
@pytest.mark.parametrize("metric", ["coin_textvqa", "dmole_vizwiz"])
def test_soft_accuracy_has_its_quirks_in_the_published_profile_only(
    metric: str, prediction: str, answers: list[str], published: float, corrected: float
) -> None:
    score = build_metric(metric).score([prediction], [answers])
    assert score.profiles["published"].value == pytest.approx(published)
    assert score.profiles["corrected"].value == pytest.approx(corrected)


def test_the_chosen_profile_fills_the_score_and_both_are_kept() -> None:
    for profile, value in (("published", 100.0), ("corrected", 0.0)):
        for metric in (
            build_metric("coin_imagenet", profile),
            build_metric(f"coin_imagenet:{profile}"),
        ):
            score = metric.score([""], [["tench"]])
            assert (score.value, score.per_sample) == (value, [value])
            assert list(score.profiles) == ["published", "corrected"]


def test_a_missing_answer_is_left_out_or_wrong_as_the_authors_have_it() -> None:
    gqa = build_metric("coin_gqa").score(["yes", None], [["yes"], ["no"]])
    assert gqa.profiles["published"].value == 100.0
    assert gqa.profiles["corrected"].value == 50.0
    assert gqa.details["missing"] == 1
    science = build_metric("coin_scienceqa").score(["A", None], [["A"], ["B"]])
    assert science.value == science.profiles["corrected"].value == 50.0
    nothing = build_metric("coin_gqa").score([None], [["yes"]])
    assert nothing.value == 0.0


def test_unreadable_answers_are_counted_by_profile() -> None:
    predictions = ["no box", "It is [0.1, 0.1, 0.9, 0.9]", "[0.1, 0.1, 0.9, 0.9]"]
    score = build_metric("coin_grounding").score(predictions, [["[0.1, 0.1, 0.9, 0.9]"]] * 3)
    assert score.details["unparsable_published"] == 2
    assert score.details["unparsable_corrected"] == 1


def test_the_best_of_several_references_counts() -> None:
    assert build_metric("coin_vizwiz").score(["no"], [["yes", "NO"]]).value == 100.0


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("coin", "unknown metric 'coin', expected one of bleu_4, cider"),
        ("coin_gqa:paper", "profile must be published or corrected, got 'paper'"),
        ("coin_gqa:", "profile must be published or corrected, got ''"),
        ("exact_match:corrected", "'exact_match' has one rule and no profiles"),
    ],
)
def test_a_wrong_name_or_profile_is_refused(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_metric(spec)


@pytest.mark.parametrize(
    ("metric", "references", "metadata", "message"),
    [
        ("dmole_multichoice", [["B"]], None, "a sample has no 'choices'"),
        ("dmole_multichoice", [["z"]], [GALLERY], "reference 'z' is neither a letter"),
        ("dmole_multichoice", [["B"]], [{"choices": "abc"}], "'choices' must be a list"),
        ("dmole_grounding", [["[0, 0, 1, 1]"]], None, "SK-VG needs the size of every image"),
        ("dmole_grounding", [["left"]], [SQUARE], "reference holds no box: 'left'"),
        ("dmole_grounding", [["[0, 0, 1, 1]"]], [{"size": [0, 9]}], "must be two positive numbers"),
        ("dmole_grounding", [["[0, 0, 1, 1]"]], [{"size": [math.nan, 9]}], "two positive numbers"),
        ("mllm_dcl_sci", [["a"]], [{"image": "x.png"}], "needs the 'question' of every sample"),
        ("coin_gqa", [["a"]], [{}, {}], "1 predictions but 2 metadata entries"),
    ],
)
def test_what_a_rule_misses_is_named(
    metric: str, references: list[list[str]], metadata: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build_metric(metric).score(["[0, 0, 1, 1]"], references, metadata)


def test_batches_of_multiple_choice_use_the_first_samples_options() -> None:
    first, second = {"choices": ["xx", "yy"]}, {"choices": ["yy", "xx"]}
    arguments = (["yy", "yy"], [["B"], ["A"]], [first, second])
    score = build_metric("dmole_multichoice_batch").score(*arguments)
    assert score.per_sample == [100.0, 0.0]
    assert score.profiles["corrected"].per_sample == [100.0, 100.0]


def test_every_task_of_a_benchmark_has_a_metric_there_is() -> None:
    assert set(benchmark_tasks().values()) <= set(GENERAL) | set(PROFILED)
    assert len(benchmark_tasks()) == sum(row.tasks for row in LEARNED)


METADATA = {
    **MAP,
    **SQUARE,
    "choices": ["a cat", "(", ""],
    "question_type": "free_form",
    "answer_type": "list",
}


def rule_metrics() -> dict[str, ProfiledMetric]:
    return {name: PROFILED[name]() for name in [*RULES, "dmole_multichoice_batch"]}


def reference_of(name: str, text: str) -> str:
    if "grounding" in name:
        return "[0.1, 0.1, 0.5, 0.5]"
    return "A" if "choice" in name or "science" in name else text


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60) | st.from_regex(r"[\[\]( ,.0-9eE%\-<>xy]{0,40}"), st.text(max_size=20))
def test_any_text_has_a_finite_score_in_percent(prediction: str, reference: str) -> None:
    for name, metric in rule_metrics().items():
        score = metric.score([prediction], [[reference_of(name, reference)]], [METADATA])
        for each in score.profiles.values():
            assert math.isfinite(each.value), name
            assert 0.0 <= each.value <= 100.0, name


@pytest.mark.parametrize("unit", ["a", "1", "[", "[1,", "1 ", "0.", "\ud800", "\n", "<x1>", "A. "])
def test_ten_thousand_characters_take_no_time(unit: str) -> None:
    text = "[" + (unit * 10_000)[:10_000]
    start = time.process_time()
    for name, metric in rule_metrics().items():
        score = metric.score([text], [[reference_of(name, text[:-1] + "b")]], [METADATA])
        assert math.isfinite(score.value), name
    assert time.process_time() - start < 5.0


def test_a_config_may_write_a_metric_of_the_benchmarks_by_its_class() -> None:
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    (line,) = [line for line in page.splitlines() if line.startswith("metric: {class_path:")]
    parser = ArgumentParser()
    parser.add_argument("--metric", type=str | TaskMetric)
    settings = parser.parse_object(yaml.safe_load(line))
    metric = parser.instantiate_classes(settings).metric
    assert isinstance(metric, RuleMetric)
    assert metric.score([""], [["[0, 0, 1, 1]"]]).details["unparsable_corrected"] == 1
    assert metric.profile == "corrected"
