"""What a task is: where its data lie, how it is scored and how long it is trained."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from dmole.metrics import TaskMetric

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass
class Task:
    """One instruction-tuning data set with its own answer form and metric.

    Args:
        name: Unique name; it becomes a folder and a state-dict key, so letters, digits, ``_``
            and ``-`` only, beginning with a letter or digit.
        train: Training samples: a ``.json`` or ``.jsonl`` file, VLMEvalKit's ``.tsv``, a folder
            of parquet files or one that ``save_to_disk`` wrote, ``.tar`` files of webdataset (a
            folder, or ``name-{000..012}.tar``), a meta file of InternVL,
            ``hf://org/name?split=train[&config=C][&revision=R]``, or
            ``synthetic://<generator>/<split>?size=N[&seed=S]``. A table takes the split of its
            name; ``folder?split=validation`` takes another. Braces hold alternatives, as in a
            shell, and the first file that exists is taken: ``CLEVR{,-Math}/{train_4w,train}.json``.
        test: Test samples, given in the same ways.
        image_root: Folder the image paths in the files are relative to, alternatives allowed; by
            default the folder of the file that names them.
        test_image_root: The same for the test file, where that is another folder.
        format: How the files are written; a name of `dmole.benchmarks.registry.LAYOUTS`. With
            ``auto`` the keys of the first items tell their shape (LLaVA and ShareGPT
            conversations, messages, query and response, questions; `dmole.data.shapes.SHAPES`),
            and all items must have it.
        side_files: Further files that the format reads, by name, such as ``problems`` and
            ``splits`` of ``scienceqa``; alternatives allowed.
        metric: Name of a task metric, or a metric object.
        epochs: Passes over the training samples.
        batch_size: Samples per device and training step; by default the data module's.
        max_new_tokens: Longest answer generated in evaluation, in tokens.
        prompt_suffix: Text put directly behind each question, such as an instruction on the
            form of the answer.
        benchmark: Published task, such as ``ucit/IconQA``, whose split sizes ``dmole data check``
            expects; by default every one of this name that it knows.
        prompt: Wording of items that are questions rather than conversations, such as
            ``"{question} Answer in one word."``. Braces hold keys of the item; ``{question}`` is
            its question without image placeholders, ``{options}`` its choices, a letter each.
        repeat: How often each training sample occurs in an epoch.
        columns: Keys of the items that are called otherwise in the files, such as
            ``{question: q}``: the key of dmole and the key of the file.
        limit: Most items of each split. A random part is taken, in the order of the file and the
            same for every seed; ``file.json#1000`` does so for one split.
        eval_only: Whether the task is never trained on: a column of the evaluation matrix that
            tells what the base model's abilities have become, outside AVG, Last and BWT.

    Example:
        >>> from dmole import Task
        >>> task = Task("color", train="color_train.json", test="color_test.json", epochs=2)
        >>> task.metric, task.max_new_tokens
        ('exact_match', 32)
    """

    name: str
    train: str | None = None
    test: str | None = None
    image_root: str | None = None
    test_image_root: str | None = None
    format: str = "auto"
    side_files: dict[str, str] = field(default_factory=dict)
    metric: str | TaskMetric = "exact_match"
    epochs: int = 1
    batch_size: int | None = None
    max_new_tokens: int = 32
    prompt_suffix: str = ""
    benchmark: str | None = None
    prompt: str | None = None
    repeat: int = 1
    columns: dict[str, str] = field(default_factory=dict)
    limit: int | None = None
    eval_only: bool = False


def validate_tasks(tasks: Sequence[Task]) -> None:
    """Refuse a list of tasks that cannot be run.

    Args:
        tasks: The tasks in any order.

    Raises:
        ValueError: If there is none, two share a name (also when only the case differs, because
            names become folders), a name holds other characters than allowed, a file is not
            given, a number is below one, or no task, or one behind an ``eval_only`` task, is to
            be learned.
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
    _validate_order(tasks)


def _validate(task: Task) -> None:
    if not _NAME.fullmatch(task.name):
        raise ValueError(
            f"task name {task.name!r} must be letters, digits, '_' or '-', "
            "beginning with a letter or digit"
        )
    if task.eval_only and task.train:
        raise ValueError(f"task {task.name!r} is eval_only: it cannot have train data")
    for split in ("test",) if task.eval_only else ("train", "test"):
        if not getattr(task, split):
            raise ValueError(f"task {task.name!r} has no {split} data")
    for key in ("epochs", "batch_size", "max_new_tokens", "repeat", "limit"):
        value = getattr(task, key)
        if value is not None and value < 1:
            raise ValueError(f"task {task.name!r}: {key} must be at least 1, got {value}")


def _validate_order(tasks: Sequence[Task]) -> None:
    # figures and BWT go by the order of the columns: those never learned stand behind the others
    for before, task in pairwise(tasks):
        if before.eval_only and not task.eval_only:
            raise ValueError(f"task {task.name!r} must stand before {before.name!r}, an eval_only")
    if tasks[0].eval_only:
        raise ValueError("there is nothing to learn: every task is eval_only")
