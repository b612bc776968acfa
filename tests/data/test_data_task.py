from __future__ import annotations

from dataclasses import replace

import pytest

from dmole.data.task import Task, validate_tasks

GOOD = Task("vqa", train="train.json", test="test.json")


def test_good_tasks_pass() -> None:
    validate_tasks([GOOD, replace(GOOD, name="OCR-2_b")])


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([], "no task is given"),
        ([GOOD, replace(GOOD)], "two tasks have the name 'vqa', tasks 1 and 2 of the list: rename"),
        ([GOOD, replace(GOOD, name="VQA")], "two tasks have the name 'vqa' and 'VQA', which"),
        ([replace(GOOD, name="a/b")], "task name 'a/b' must be letters"),
        ([replace(GOOD, name="-a")], "task name '-a' must be letters"),
        ([replace(GOOD, name="a\n")], "task name"),
        ([replace(GOOD, name="")], "task name ''"),
        (
            [replace(GOOD, name="Base")],
            "task name 'Base' is reserved: it stands for the base model",
        ),
        ([replace(GOOD, train=None)], "task 'vqa' has no train data"),
        ([replace(GOOD, test="")], "task 'vqa' has no test data"),
        ([replace(GOOD, epochs=0)], "task 'vqa': epochs must be at least 1, got 0"),
        ([replace(GOOD, batch_size=-1)], "task 'vqa': batch_size must be at least 1, got -1"),
        ([replace(GOOD, max_new_tokens=0)], "task 'vqa': max_new_tokens must be at least 1"),
        ([replace(GOOD, repeat=0)], "task 'vqa': repeat must be at least 1, got 0"),
        ([replace(GOOD, eval_only=True)], "task 'vqa' is eval_only: it cannot have train data"),
        ([replace(GOOD, train=None, eval_only=True)], "nothing to learn: every task is eval_only"),
        (
            [GOOD, Task("kept", test="x", eval_only=True), replace(GOOD, name="later")],
            "task 'later' must stand before 'kept'",
        ),
    ],
)
def test_bad_tasks_are_refused_in_one_line(tasks: list[Task], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        validate_tasks(tasks)
    assert "\n" not in str(caught.value)
