"""The answers of a run after every stage, and which of them hold for good."""

from __future__ import annotations

import math
from typing import Any

import pytest

from dmole.report.history import History, read_history
from dmole.storage.case_images import Case


def line(name: str, gates: str, score: Any = 100.0, text: Any = "so") -> dict[str, Any]:
    answer = {"id": name, "prompt": "how?", "prediction": text, "references": ["so"]}
    return {**answer, "score": score, "gate_set": gates}


OWNERS = {"a": ("a",), "b": ("b",)}


def history(cases: dict[str, dict[str, Case]] | None = None) -> History:
    stages = [
        (2, {"a": [line("1", "a"), line("2", "b+a", 0.0)], "b": [line("1", "b")]}),
        (1, {"a": [line("1", "a", 0.0), line("2", "a", 80.0), line("gone", "a")]}),
        (
            0,
            {"a": [line("2", "base", "high", None), line("1", "base", 0.0)], "c": [line("1", "x")]},
        ),
    ]
    return read_history(iter(stages), {"a": 1, "b": 2}, OWNERS, cases or {})


def test_answers_are_followed_over_the_stages_and_known_by_gate_set() -> None:
    found = history()
    assert found.stages == [0, 1, 2]
    assert found.ids == {"a": ["1", "2"], "b": ["1"]}
    story = found.stories["a"]["2"]
    assert [(a.stage, a.gate_set, a.text) for a in story.answers] == [
        (0, "base", ""),
        (1, "a", "so"),
        (2, "b+a", "so"),
    ]
    assert math.isnan(story.answers[0].score)
    assert [answer.right for answer in story.answers] == [False, True, False]
    assert found.known["a"]["2"] == {frozenset("a"): 80.0, frozenset("ab"): 0.0}
    assert found.known["a"]["1"] == {frozenset("a"): 100.0, frozenset(): 0.0}  # of the last stage


def test_an_answer_of_an_expert_that_trained_on_is_not_known() -> None:
    stages = [(2, {"a": [line("1", "a+c")]}), (1, {"a": [line("1", "c", 0.0)]})]
    found = read_history(iter(stages), {"a": 1, "c": 2}, OWNERS, {})
    assert found.known["a"]["1"] == {frozenset("ac"): 100.0}


def test_samples_with_images_are_followed_and_no_others() -> None:
    found = history({"a": {"2": Case("a", "2", ()), "other": Case("a", "other", ())}})
    assert found.cases == {"a": ["2"], "b": ["1"]}


def test_samples_of_another_expert_are_followed_those_with_images_first() -> None:
    lines = [line(str(at), gates) for at, gates in enumerate(["a", *["b+a"] * 9, "base"])]
    cases = {"a": {name: Case("a", name, ()) for name in ("0", "8")}}
    found = read_history(iter([(1, {"a": lines, "new": lines})]), {}, OWNERS, cases)
    assert found.confused == {"a": {"b": ["8", "1", "2", "3"], "base": ["10"]}, "new": {}}
    assert set(found.stories["a"]) == {"0", "8", "1", "2", "3", "10"}


def test_a_line_without_an_id_is_refused() -> None:
    with pytest.raises(ValueError, match="predictions of task 'a': a line has no id"):
        read_history(iter([(0, {"a": [{"id": 3}]})]), {}, {}, {})
