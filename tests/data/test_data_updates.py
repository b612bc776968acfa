"""Tasks that continue an earlier one: names of their versions, columns, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dmole.data import Task
from dmole.data.task import validate_tasks
from dmole.data.updates import next_version, predecessors
from dmole.datamodule import ContinualDataModule


def learned(name: str, **options: Any) -> Task:
    return Task(name, train="a.json", test="b.json", **options)


def update(name: str, **options: Any) -> Task:
    return Task(name, train="c.json", update=True, **options)


def test_each_version_continues_the_newest_one_before_it() -> None:
    tasks = [learned("a"), update("a-v2"), learned("b-v2"), update("b-v2-v2"), update("a-v3")]
    validate_tasks(tasks)
    assert predecessors(tasks) == {"a-v2": "a", "b-v2-v2": "b-v2", "a-v3": "a-v2"}


def test_the_number_of_a_version_is_not_that_of_another_task() -> None:
    others = [learned("a"), learned("A-v2"), learned("a-v4")]
    assert next_version("a", ["a", "A-v2", "a-v4"]) == "a-v3"
    tasks = [*others, update("a-v3"), update("a-v5")]
    validate_tasks(tasks)
    assert predecessors(tasks) == {"a-v3": "a", "a-v5": "a-v3"}


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([update("a")], "must be that of an earlier task with the number of the version"),
        ([update("a-v2"), learned("a")], "no task 'a' comes before it"),
        ([learned("a"), update("a-v3")], "next version of 'a' it is named 'a-v2'"),
        ([learned("a"), update("a-v2"), update("a-v4")], "version of 'a-v2' it is named 'a-v3'"),
        ([learned("a"), update("a")], "tasks 1 and 2 of the list: name the update 'a-v2'"),
        ([learned("a"), learned("a-v2"), update("a-v2")], "name the update 'a-v2-v2'"),
        ([learned("b"), Task("a", test="t", eval_only=True), update("a-v2")], "must stand before"),
        ([learned("a"), Task("a-v2", test="t", eval_only=True, update=True)], "eval_only"),
        ([learned("a"), Task("a-v2", test="t", update=True)], "task 'a-v2' has no train data"),
        ([learned("a"), Task("b", train="c.json")], "task 'b' has no test data"),
    ],
)
def test_an_update_without_its_place_is_refused(tasks: list[Task], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validate_tasks(tasks)


def test_an_update_has_a_column_only_with_test_samples_of_its_own() -> None:
    address = "synthetic://count/{}?size=4"
    files = {"train": address.format("train"), "test": address.format("test")}
    tasks = [
        Task("count", **files),
        Task("count-v2", train=files["train"], update=True),
        Task("count-v3", **files, update=True),
    ]
    data = ContinualDataModule(tasks)
    data.check()
    assert data.training_task_names == ["count", "count-v2", "count-v3"]
    assert data.column_names == data.tested_task_names == ["count", "count-v3"]
    assert data.fingerprint()["count-v2"].keys() == {"train"}


def test_training_samples_of_an_update_are_compared_with_the_test_samples_of_its_task(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from PIL import Image

    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    item = '[{"id": "1", "image": "x.png", "conversations": [%s]}]'
    turns = '{"from": "human", "value": "<image>how many?"}, {"from": "gpt", "value": "%s"}'
    (tmp_path / "new.json").write_text(item % (turns % "one"))
    (tmp_path / "old.json").write_text(item % (turns % "two").replace("how many", "what"))
    tasks = [Task("a", train="old.json", test="new.json"), Task("a-v2", "new.json", update=True)]
    ContinualDataModule(tasks, data_root=str(tmp_path)).check()
    (text,) = [record.getMessage() for record in caplog.records]
    assert text.startswith("task a-v2: 1 test samples have the image and question")
