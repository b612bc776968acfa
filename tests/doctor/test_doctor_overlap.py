"""How many test answers of a task other tasks train."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dmole.data.task import Task
from dmole.doctor import CheckOptions, as_json, as_text, check_tasks
from dmole.doctor.overlap import AnswerHashes, measure_overlap


def hashes(*answers: str) -> AnswerHashes:
    made = AnswerHashes()
    made.add(answers)
    return made


def test_three_tasks_by_hand() -> None:
    train = {"a": hashes("yes", "no"), "b": hashes("No.", "red"), "c": hashes("2")}
    test = {"a": hashes("YES", "no", "no", " no "), "b": hashes("red", "blue"), "c": hashes()}
    overlap = measure_overlap(train, test)
    assert overlap.by_pair == {
        ("a", "b"): 0.75,
        ("a", "c"): 0.0,
        ("b", "a"): 0.0,
        ("b", "c"): 0.0,
    }
    assert overlap.of_task == {"a": 0.75, "b": 0.0}  # c has no test answer
    assert overlap.nearest("a") == ("b", 0.75)
    with pytest.raises(ValueError, match="'c' were not compared"):
        overlap.nearest("c")


def test_answers_of_several_tasks_count_once_in_the_figure_of_a_task() -> None:
    train = {"a": hashes("x"), "b": hashes("1", "2"), "c": hashes("2", "3")}
    overlap = measure_overlap(train, {"a": hashes("1", "2", "3", "4")})
    assert overlap.by_pair == {("a", "b"): 0.5, ("a", "c"): 0.5}
    assert overlap.of_task == {"a": 0.75}


def test_versions_of_a_task_are_no_other_tasks() -> None:
    train = {"a": hashes("x"), "a-v2": hashes("1", "2"), "a-v3": hashes("3"), "b": hashes("4")}
    updates = {"a-v2": "a", "a-v3": "a-v2"}
    overlap = measure_overlap(train, {"a": hashes("1", "3", "4", "5"), "b": hashes("2")}, updates)
    assert overlap.of_task == {"a": 0.25, "b": 1.0}
    assert overlap.by_pair.keys() == {("a", "b"), *(("b", name) for name in ("a", "a-v2", "a-v3"))}


def test_periods_alone_are_an_answer_of_their_own() -> None:
    train = {"b": hashes("", "...")}
    assert measure_overlap(train, {"a": hashes(".", "...")}).of_task == {"a": 0.5}


def test_memory_is_that_of_the_different_answers() -> None:
    answers = AnswerHashes()
    for part in range(10):
        answers.add(str((part * 10_000 + n) % 1000) for n in range(10_000))
    assert len(answers._new) < 1 << 17
    assert answers.counts().tolist() == [100] * 1000
    held = answers.hashes().nbytes + answers.counts().nbytes + sys.getsizeof(answers._new)
    assert held < 20_000
    assert (np.diff(answers.hashes().astype(object)) > 0).all()


def item(answer: str, *more: str) -> dict[str, Any]:
    turns = [
        {"from": who, "value": text}
        for text in (answer, *more)
        for who, text in (("human", "what?"), ("gpt", text))
    ]
    return {"conversations": turns}


@pytest.fixture
def tasks(tmp_path: Path) -> list[Task]:
    files: dict[str, Any] = {
        "a_train": [item("yes"), item("no")],
        "a_test": [{"text": "is it?", "answer": ["no", "yes", "yes"]}, item("no")],
        "b_train": [item("red", "Yes."), item("blue")],
        "b_test": [item("green"), item("red")],
    }
    for name, content in files.items():
        numbered = [{"id": f"{name}-{n}", **each} for n, each in enumerate(content)]
        (tmp_path / f"{name}.json").write_text(json.dumps(numbered))
    return [Task(name, f"{name}_train.json", f"{name}_test.json", format="coin") for name in "ab"]


@pytest.mark.parametrize("processes", [0, 2])
def test_the_report_has_the_shares_and_a_note(
    tmp_path: Path, tasks: list[Task], processes: int
) -> None:
    report = check_tasks(tasks, tmp_path, CheckOptions(processes=processes))
    content = as_json(report)
    # the most frequent of the ten answers, and those of every turn
    assert content["answer_overlap"] == {
        "of_task": {"a": 0.5, "b": 0.0},
        "by_pair": {"a": {"b": 0.5}, "b": {"a": 0.0}},
    }
    (note,) = [each for each in content["findings"] if each["kind"] == "shared_answers"]
    assert (note["level"], note["task"], note["split"]) == ("note", "a", "test")
    assert note["message"].startswith("50.0% of the test answers are training answers of other")
    assert content["findings"][-1] == note  # after errors and warnings
    text = as_text(report)
    assert "   1 a      -  50.0%  50.0%\n   2 b   0.0%      -   0.0%\n" in text
    assert "note shared_answers: a test: " in text


def test_a_file_that_breaks_off_and_a_single_task_are_not_compared(
    tmp_path: Path, tasks: list[Task]
) -> None:
    assert "training answers" not in as_text(check_tasks(tasks[:1], tmp_path, CheckOptions()))
    (tmp_path / "b_train.json").write_text('[{"id": 1')
    content = as_json(check_tasks(tasks, tmp_path, CheckOptions()))
    assert content["answer_overlap"]["of_task"] == {"a": None, "b": 0.0}


def test_new_data_of_a_task_are_not_noted_as_shared(tmp_path: Path, tasks: list[Task]) -> None:
    update = Task("a-v2", "a_train.json", format="coin", update=True)
    report = check_tasks([tasks[0], update], tmp_path, CheckOptions())
    assert not report.overlap.of_task
    assert "shared_answers" not in {finding.kind for finding in report.findings()}
