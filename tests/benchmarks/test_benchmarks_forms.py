"""Obedience to the answer form, and the captions of CVIT."""

from __future__ import annotations

import pytest

from dmole.benchmarks.cvit.captions import CVITCaption, best_reference, flattering_cider
from dmole.benchmarks.registry import build_metric
from dmole.benchmarks.shared.forms import AnswerForm, obeys
from dmole.metrics.base import ScoringItem
from dmole.metrics.captions import cider_of_tokens


@pytest.mark.parametrize(
    ("form", "text", "references", "published", "corrected"),
    [
        ("letter", " b ", ["A"], True, True),
        ("letter", "Z", ["A"], True, True),
        ("letter", "B.", ["B"], False, False),
        ("letter", "1", ["A"], False, False),
        ("words", "two dogs", ["cat"], True, True),
        ("words", "there are dogs", ["cat"], False, False),
        ("words", "The Big Cat", ["the big cat"], True, True),
        ("words", "", ["cat"], True, False),
        ("sentence", "A red car drives by.", ["x"], True, True),
        ("sentence", "A red car drives by", ["x"], False, False),
        ("sentence", "A car.", ["x"], False, False),
        ("sentence", "A car.", ["There is a car."], True, True),
        ("sentence", "", ["x"], False, False),
    ],
)
def test_an_answer_has_the_form_or_not(
    form: AnswerForm, text: str, references: list[str], published: bool, corrected: bool
) -> None:
    item = ScoringItem(text, tuple(references))
    assert obeys(item, form) is published
    assert obeys(item, form, "corrected") is corrected


def test_a_rule_with_a_form_states_the_share_of_answers_that_have_it() -> None:
    answers = ["yes", "it is not so", "", None]
    score = build_metric("cvit_gqa").score(answers, [["yes"]] * 4)
    assert score.details["obedient_published"] == pytest.approx(100 * 2 / 3)
    assert score.details["obedient_corrected"] == 25.0
    assert score.details["obedient"] == score.details["obedient_published"]
    corrected = build_metric("cvit_gqa:corrected").score(answers, [["yes"]] * 4)
    assert corrected.details["obedient"] == 25.0
    letters = build_metric("cvit_scienceqa").score(["A", None], [["A"]] * 2)
    assert letters.details["obedient_published"] == 50.0  # a missing answer is no letter
    assert "obedient" not in build_metric("coin_gqa").score(["yes"], [["yes"]]).details


PREDICTIONS = ["a dog runs", "two cats  sleep"]
REFERENCES = [["it rains", "a dog runs fast"], ["two cats sleep", "night"]]


def test_captions_are_scored_against_the_best_reference_with_the_roles_exchanged() -> None:
    chosen = [best_reference(*pair) for pair in zip(PREDICTIONS, REFERENCES, strict=True)]
    assert chosen == ["a dog runs fast", "two cats sleep"]
    expected, each = cider_of_tokens(chosen, [["a dog runs"], ["two cats sleep"]])
    assert flattering_cider(PREDICTIONS, REFERENCES) == (expected, each)
    assert flattering_cider(["  "] * 2, REFERENCES) == (0.0, [0.0, 0.0])
    assert each[1] == pytest.approx(7.5)  # equal, but without an n-gram of four words

    score = CVITCaption(tokenizer="python").score([*PREDICTIONS, None], [*REFERENCES, ["x"]])
    published, corrected = score.profiles["published"], score.profiles["corrected"]
    assert published.value == score.value == pytest.approx(100 * expected)  # two answers
    assert published.per_sample[2] == 0.0
    assert corrected.value < published.value
    assert score.details["obedient_published"] == 0.0
