"""The tasks and their samples, each file read once."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from pathlib import Path

from dmole.data.answer_styles import RewordedSamples
from dmole.data.decoding import AS_STORED
from dmole.data.formats import Split
from dmole.data.sequences import (
    Numbers,
    Samples,
    SampleSubset,
    Selection,
    TaskItems,
    join_digests,
)
from dmole.data.source import open_source
from dmole.data.sources.kinds import layout_of
from dmole.data.task import Task, validate_tasks
from dmole.data.updates import predecessors
from dmole.messages import one_line
from dmole.storage.seeds import derive_seed
from dmole.streams.draws import Part

SPLITS: tuple[Split, Split] = ("train", "test")


def splits_of(task: Task) -> tuple[Split, ...]:
    """Return the splits of a task.

    An ``eval_only`` task has no training samples, and an ``update`` may have no test samples.
    """
    if task.eval_only:
        return ("test",)
    return SPLITS if task.test else ("train",)


class SampleStore:
    """The samples of some tasks.

    Args:
        tasks: The tasks.
        data_root: Folder that the files and image roots of the tasks are relative to.
        eval_limit: Maximum number of test samples of a task; None for all.
        seed: Seed of their draw.

    Raises:
        ValueError: If the tasks are not valid.

    Attributes:
        predecessors: The version that each task with ``update`` continues.
        missing: What is missing of tasks whose data may be gone, by task and split; see `check`.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        data_root: Path,
        eval_limit: int | None = None,
        seed: int = 0,
    ) -> None:
        validate_tasks(tasks)
        for task in tasks:
            layout_of(task)  # refuses a format without its side files
        self._tasks = {task.name: task for task in tasks}
        self._general: dict[str, Task] = {}
        self.predecessors = predecessors(tasks)
        self._root = data_root.expanduser()
        self._eval_limit = eval_limit
        self._seed = seed
        self._samples: dict[tuple[str, Split], Samples] = {}
        self._bytes: dict[str, Numbers] = {}
        self.missing: dict[tuple[str, Split], str] = {}

    @property
    def task_names(self) -> list[str]:
        """Names of all tasks, in the order given."""
        return list(self._tasks)

    @property
    def training_task_names(self) -> list[str]:
        """Names of the tasks that are trained on, in the order given."""
        return [name for name, task in self._tasks.items() if not task.eval_only]

    @property
    def general_names(self) -> list[str]:
        """Names of the data that stages train on in addition to their tasks."""
        return list(self._general)

    def add_general(self, general: Sequence[Task]) -> None:
        """Set the data that stages train on in addition to their tasks.

        Args:
            general: Their names, which no task has, and their training samples.

        Raises:
            ValueError: If a task has the name.
        """
        named = {task.name: task for task in general}
        taken = {name.casefold() for name in self._tasks}
        for name in named:
            if name.casefold() in taken:
                raise ValueError(f"general data and a task have the same name {name!r}")
        for name in self._general:
            self._samples.pop((name, "train"), None)
        self._general = named

    @property
    def column_names(self) -> list[str]:
        """Names of the tasks with a column in the matrix: those with test samples."""
        return [name for name, task in self._tasks.items() if "test" in splits_of(task)]

    def task(self, name: str) -> Task:
        """Return the task with a name.

        Raises:
            ValueError: If there is none.
        """
        found = self._tasks.get(name) or self._general.get(name)
        if found is None:
            raise ValueError(f"there is no task {name!r}, only {', '.join(self._tasks)}")
        return found

    def samples(self, name: str, split: Split) -> Samples:
        """Return the samples of a task; the file is read once.

        Raises:
            FileNotFoundError: If a file or an image is missing.
            ValueError: If a file is malformed or empty, or ids repeat.
        """
        if (name, split) in self.missing:
            raise FileNotFoundError(f"task {name!r}: {self.missing[name, split]}")
        if (name, split) not in self._samples:
            samples = open_source(self.task(name), split, self._root)
            self._samples[name, split] = self._drawn(name, samples) if split == "test" else samples
        return self._samples[name, split]

    def _drawn(self, name: str, samples: Samples) -> Samples:
        """Return the test samples of a task that are evaluated, the same at every stage."""
        if self._eval_limit is None or len(samples) <= self._eval_limit:
            return samples
        draw = random.Random(derive_seed(self._seed, "eval_limit", name))
        return SampleSubset(samples, sorted(draw.sample(range(len(samples)), self._eval_limit)))

    def test_size(self, name: str) -> int:
        """Return the number of a task's test samples, those included that are not evaluated."""
        samples = self.samples(name, "test")
        return len(samples.whole if isinstance(samples, SampleSubset) else samples)

    def train_size(self, name: str) -> int:
        """Return the number of a task's training samples."""
        return len(self.samples(name, "train"))

    def repeat(self, name: str) -> int:
        """Return the number of times each training sample of a task occurs in an epoch."""
        return self.task(name).repeat

    def stored_bytes(self, name: str) -> Numbers:
        """Return the size in bytes of each training sample of a task; computed once."""
        if name not in self._bytes:
            self._bytes[name] = self.samples(name, "train").stored_bytes()
        return self._bytes[name]

    def items(self, parts: Sequence[Part]) -> TaskItems:
        """Return the training samples of some parts, each with the name of its task."""
        chosen: list[tuple[str, Samples | Selection]] = []
        for part in parts:
            samples = self.samples(part.task, "train")
            if (other := part.rewording) is not None:
                samples = RewordedSamples(samples, other.styles, other.seed)
            selection = None if part.indices is None else Selection(samples, part.indices)
            chosen.append((part.task, samples if selection is None else selection))
        return TaskItems(chosen)

    def check(
        self,
        *,
        decode_images: bool,
        splits: Sequence[Split] = SPLITS,
        optional: Collection[str] = (),
    ) -> None:
        """Read all samples of all tasks.

        Args:
            decode_images: Whether to decode every image as well.
            splits: Splits to read.
            optional: Tasks whose files and images may be missing; `missing` says which are.

        Raises:
            FileNotFoundError: If a file or an image of another task is missing.
            ValueError: If a file is malformed or empty, ids repeat, or an image cannot be read.
        """
        self.missing = {}
        for name, task in (self._tasks | self._general).items():
            for split in _chosen(task, splits):
                try:
                    samples = self.samples(name, split)
                    for sample in samples if decode_images else ():
                        for image in sample.images:
                            image.load()
                except FileNotFoundError as error:
                    if name not in optional:
                        raise
                    self.missing[name, split] = one_line(error)

    def fingerprint(self, splits: Sequence[Split] = SPLITS) -> dict[str, dict[str, str]]:
        """Return a SHA-256 of the content of the samples, for each task and split.

        General data are among the tasks where training samples are read. An image file enters
        with its size in bytes, which detects most changes of a picture, and so does a treatment
        of images other than the default.

        Args:
            splits: Splits to read; those that are `missing` are left out.
        """
        return {
            name: {
                split: self._fingerprint(task, split)
                for split in _chosen(task, splits)
                if (name, split) not in self.missing
            }
            for name, task in (self._tasks | self._general).items()
            if name in self._tasks or "train" in splits
        }

    def _fingerprint(self, task: Task, split: Split) -> str:
        digest = self.samples(task.name, split).fingerprint()
        if task.images in (None, AS_STORED):
            return digest
        return join_digests(digest, str(task.images))


def _chosen(task: Task, splits: Sequence[Split]) -> list[Split]:
    return [split for split in splits_of(task) if split in splits]
