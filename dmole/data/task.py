"""What a task is: where its data lie, how it is scored and how long it is trained."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from dmole.metrics import TaskMetric

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass
class Task:
    """One instruction-tuning data set with its own answer form and metric.

    Args:
        name: Unique name; it becomes a folder and a state-dict key, so letters, digits, ``_``
            and ``-`` only, beginning with a letter or digit.
        train: Training samples: a ``.json`` or ``.jsonl`` file, or
            ``synthetic://<generator>/<split>?size=N[&seed=S]``.
        test: Test samples, given in the same ways.
        image_root: Folder the image paths in the files are relative to; by default the folder of
            the file that names them.
        metric: Name of a task metric, or a metric object.
        epochs: Passes over the training samples.
        batch_size: Samples per device and training step; by default the data module's.
        max_new_tokens: Longest answer generated in evaluation, in tokens.
        prompt_suffix: Text put directly behind each question, such as an instruction on the
            form of the answer.
        benchmark: Published task, such as ``UCIT/IconQA``, whose split sizes ``dmole data check``
            expects; by default every one of this name that it knows.
    """

    name: str
    train: str | None = None
    test: str | None = None
    image_root: str | None = None
    metric: str | TaskMetric = "exact_match"
    epochs: int = 1
    batch_size: int | None = None
    max_new_tokens: int = 32
    prompt_suffix: str = ""
    benchmark: str | None = None


def validate_tasks(tasks: Sequence[Task]) -> None:
    """Refuse a list of tasks that cannot be run.

    Args:
        tasks: The tasks in any order.

    Raises:
        ValueError: If there is none, two share a name (also when only the case differs, because
            names become folders), a name holds other characters than allowed, a file is not
            given, or a number is below one.
    """
    if not tasks:
        raise ValueError("no task is given")
    seen: dict[str, str] = {}
    for task in tasks:
        _validate(task)
        key = task.name.casefold()
        if key in seen:
            raise ValueError(f"two tasks have the name {task.name!r} (the other: {seen[key]!r})")
        seen[key] = task.name


def _validate(task: Task) -> None:
    if not _NAME.fullmatch(task.name):
        raise ValueError(
            f"task name {task.name!r} must be letters, digits, '_' or '-', "
            "beginning with a letter or digit"
        )
    for split in ("train", "test"):
        if not getattr(task, split):
            raise ValueError(f"task {task.name!r} has no {split} data")
    for key in ("epochs", "batch_size", "max_new_tokens"):
        value = getattr(task, key)
        if value is not None and value < 1:
            raise ValueError(f"task {task.name!r}: {key} must be at least 1, got {value}")
