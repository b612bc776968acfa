"""A task: where its data are, how it is scored and how long it is trained."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from dmole.data.decoding import ImageOptions
from dmole.data.updates import next_version, predecessors
from dmole.metrics import TaskMetric

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
RESERVED = {"base": "the base model alone", "auto": "the choice of the router"}
"""Gate sets in tables and requests that are no experts; an expert has the name of its task."""


@dataclass
class Task:
    """One instruction-tuning data set with its own answer form and metric.

    Args:
        name: Unique name. It becomes a folder and a state-dict key, so it consists of letters,
            digits, ``_`` and ``-`` and begins with a letter or digit. ``base`` and ``auto`` are
            reserved.
        train: Training samples: a ``.json`` or ``.jsonl`` file, VLMEvalKit's ``.tsv``, a folder
            of parquet files or one written by ``save_to_disk``, ``.tar`` files of webdataset (a
            folder, or ``name-{000..012}.tar``), a meta file of InternVL,
            ``hf://org/name?split=train[&config=C][&revision=R]``, or
            ``synthetic://<generator>/<split>?size=N[&seed=S]``. A table yields the split named
            after the field, ``train`` or ``test``; ``folder?split=validation`` selects another.
            Braces hold alternatives, as in a shell; the first file that exists is read:
            ``CLEVR{,-Math}/{train_4w,train}.json``.
        test: Test samples, in the same forms.
        image_root: Folder that image paths in the files are relative to; alternatives are
            allowed. The default is the folder of the file that names the images.
        test_image_root: The same for the test file, if it differs.
        format: Layout of the files, a name in `dmole.benchmarks.registry.LAYOUTS`. With
            ``auto``, the keys of the first items determine their shape (LLaVA and ShareGPT
            conversations, messages, query and response, questions; `dmole.data.shapes.SHAPES`),
            and every item must have this shape.
        side_files: Further files that the format reads, by name, such as ``problems`` and
            ``splits`` of ``scienceqa``; alternatives are allowed.
        metric: Name of a task metric, or a metric object.
        epochs: Passes over the training samples.
        batch_size: Samples per device and training step. The default is the data module's.
        max_new_tokens: Longest answer generated in evaluation, in tokens.
        prompt_suffix: Text appended directly to each question, such as an instruction on the
            form of the answer.
        benchmark: Published task, such as ``ucit/IconQA``, whose split sizes ``dmole data check``
            expects. By default it compares with every published task of this name.
        prompt: Prompt template of items that are questions rather than conversations, such as
            ``"{question} Answer in one word."``. Braces hold keys of the item; ``{question}`` is
            its question without image placeholders, ``{options}`` its choices with letters.
        repeat: How often each training sample occurs in an epoch.
        columns: Renamed keys, such as ``{question: q}``: the key that dmole expects and the key
            in the file.
        limit: Maximum number of items of each split. They are a random subset in the order of
            the file, the same for every seed. ``file.json#1000`` limits one split.
        eval_only: Whether the task is never trained on. Its column of the evaluation matrix
            shows how well the model retains the base model's abilities; AVG, Last and BWT
            leave it out.
        update: Whether the task continues an earlier one on new data of it: its expert is a new
            version of the earlier task's newest expert, which is kept. The name is that of the
            earlier task with the number of the version, such as ``receipts-v2``. ``test`` may be
            left out; then only the earlier task's column shows the effect.
        images: How transparent and turned images are read: ``background``, a color such as
            ``white``, and ``apply_exif``. The default is the data module's ``images``.

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
    update: bool = False
    images: ImageOptions | None = None


def validate_tasks(tasks: Sequence[Task]) -> None:
    """Reject a list of tasks that cannot be run.

    Args:
        tasks: The tasks in any order.

    Raises:
        ValueError: If the list is empty, two tasks share a name (also when only the case differs,
            because names become folders), a name contains a character that is not allowed or is
            reserved, a file is missing, a number is below one,
            every task is ``eval_only``, a learned task follows an ``eval_only`` task, or a task
            with ``update`` has no earlier task to continue.
    """
    if not tasks:
        raise ValueError("no task is given")
    seen: dict[str, int] = {}
    for position, task in enumerate(tasks):
        _validate(task)
        first = seen.setdefault(task.name.casefold(), position)
        if first != position:
            raise _same_name(tasks, first, position)
    _validate_order(tasks)
    predecessors(tasks)


def _same_name(tasks: Sequence[Task], first: int, second: int) -> ValueError:
    one, other = tasks[first].name, tasks[second].name
    where = f"tasks {first + 1} and {second + 1} of the list: rename one of them"
    if one == other:
        if tasks[second].update:
            version = next_version(one, [task.name for task in tasks])
            where = f"tasks {first + 1} and {second + 1} of the list: name the update {version!r}"
        return ValueError(f"two tasks have the name {one!r}, {where}")
    return ValueError(
        f"two tasks have the name {one!r} and {other!r}, which are one folder on some file "
        f"systems, {where}"
    )


def _validate(task: Task) -> None:
    if not _NAME.fullmatch(task.name):
        raise ValueError(
            f"task name {task.name!r} must be letters, digits, '_' or '-', "
            "beginning with a letter or digit"
        )
    if meaning := RESERVED.get(task.name.casefold()):
        raise ValueError(f"task name {task.name!r} is reserved: it stands for {meaning}")
    if task.eval_only and task.train:
        raise ValueError(f"task {task.name!r} is eval_only: it cannot have train data")
    if task.eval_only and task.update:
        raise ValueError(f"task {task.name!r} is eval_only: it cannot update an expert")
    for split in _needed_splits(task):
        if not getattr(task, split):
            raise ValueError(f"task {task.name!r} has no {split} data")
    for key in ("epochs", "batch_size", "max_new_tokens", "repeat", "limit"):
        value = getattr(task, key)
        if value is not None and value < 1:
            raise ValueError(f"task {task.name!r}: {key} must be at least 1, got {value}")


def _needed_splits(task: Task) -> tuple[str, ...]:
    """Return the splits that a task must have."""
    if task.eval_only:
        return ("test",)
    return ("train",) if task.update else ("train", "test")


def _validate_order(tasks: Sequence[Task]) -> None:
    # figures and BWT depend on the order of the columns: eval_only tasks come last
    for before, task in pairwise(tasks):
        if before.eval_only and not task.eval_only:
            raise ValueError(f"task {task.name!r} must stand before {before.name!r}, an eval_only")
    if tasks[0].eval_only:
        raise ValueError("there is nothing to learn: every task is eval_only")
