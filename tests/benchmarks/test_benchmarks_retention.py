from __future__ import annotations

import math

import pytest

from dmole.benchmarks.registry import build_metric
from dmole.benchmarks.retention.metrics import mme_answer, option_answer, pope_answer
from dmole.metrics import retention


@pytest.mark.parametrize(
    ("text", "answer"),
    [("Yes", "yes"), (" NO.", "no"), ("Not so", "no"), ("I see: yes", "other"), ("", "other")],
)
def test_mme_looks_at_the_first_four_characters(text: str, answer: str) -> None:
    assert mme_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [("No, it is", "no"), ("NO", "yes"), ("I do not think", "no"), ("Yes. no", "yes"), ("", "yes")],
)
def test_pope_takes_for_yes_what_does_not_say_no(text: str, answer: str) -> None:
    assert pope_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A", "A"),
        ("B.", "B"),
        ("(C)", "C"),
        ("D: cat", "D"),
        ("A cat, so B", "B"),
        ("I think E", "E"),
        ("I'm sure", None),
        ("a", "A"),
        ("The answer is A because of the color", "A"),
        ("Not A. It is C", "C"),
        ("A and B are wrong, so it is C", "C"),
        ("B. It shows vitamin C", "B"),
        ("(B), as plan C fails", "B"),
        ("", None),
        ("Because", None),
    ],
)
def test_the_letter_of_an_option_is_not_a_word(text: str, letter: str | None) -> None:
    assert option_answer(text) == letter


def test_mme_counts_images_with_both_answers_right() -> None:
    answers = ["yes", "no", "yes", "yes", "no", "no"]
    references = [
        ["Yes image=count/1.jpg"],
        ["No image=count/1.jpg"],
        ["Yes image=count/2.jpg"],
        ["No image=count/2.jpg"],
        ["Yes image=code_reasoning/1.jpg"],
        ["No image=code_reasoning/1.jpg"],
    ]
    score = build_metric("mme").score(answers, references)
    assert score.details["count"] == pytest.approx(75.0 + 50.0)
    assert score.details["code_reasoning"] == pytest.approx(50.0)
    assert score.details["perception"] == pytest.approx(125.0)
    assert score.details["cognition"] == pytest.approx(50.0)
    assert score.value == pytest.approx((125.0 + 50.0) / 4)
    assert score.per_sample == [100.0, 100.0, 100.0, 0.0, 0.0, 100.0]


def test_mme_without_images_is_refused() -> None:
    with pytest.raises(ValueError, match="reference 'Yes' does not name the image"):
        build_metric("mme").score(["yes"], [["Yes"]])


def test_pope_reports_precision_and_recall() -> None:
    references = [["yes"], ["yes"], ["no"], ["no"]]
    score = build_metric("pope").score(["yes", "no", "yes", "yes"], references)
    assert score.value == 25.0
    assert score.details["precision"] == pytest.approx(100 / 3)
    assert score.details["recall"] == 50.0
    assert score.details["f1"] == pytest.approx(40.0)
    assert score.details["yes_share"] == 75.0
    assert build_metric("pope").score(["no"], [["no"]]).details["f1"] == 0.0


def test_mmmu_takes_letters_and_open_answers() -> None:
    score = build_metric("mmmu").score(
        ["(B) dog", "dog", "3.5", "The answer"], [["B"], ["B"], ["3.5"], ["the  answer."]]
    )
    assert score.per_sample == [100.0, 0.0, 100.0, 100.0]


def test_retention_is_the_change_since_before_training() -> None:
    result = retention([[80.0, math.nan], [70.0, 60.0], [75.0, 50.0]], ["pope", "mme"])
    assert result["per_task"]["pope"] == {"before": 80.0, "last": 75.0, "change": -5.0}
    assert result["per_task"]["mme"] == {"before": None, "last": 50.0, "change": None}
    assert result["change"] == -5.0
    assert "divisor 1" in result["definition"]


def test_retention_without_scores_is_missing() -> None:
    assert retention([[math.nan]], ["pope"])["change"] is None
