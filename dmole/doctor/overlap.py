"""Measures how many test answers of a task are training answers of other tasks.

A task whose answers later tasks train too seems to be remembered: its score stays high because the
answers stay likely, not because the task is known.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dmole.benchmarks.shared.rule import tidy
from dmole.data.leakage import stable_hash
from dmole.storage.versions import versions_of

Hashes = npt.NDArray[np.uint64]

_ROOM = 1 << 16  # hashes that are added before repeated ones are removed


class AnswerHashes:
    """The different answers of a file and how often each occurs, as 64-bit hashes.

    Memory is in proportion to the number of different answers, 16 bytes each, not to that of all.
    Answers that differ in case, white space or final periods are equal.

    Example:
        >>> answers = AnswerHashes()
        >>> answers.add(["Yes.", " yes", "no"])
        >>> answers.counts().sum(), len(answers.hashes())
        (np.int64(3), 2)
    """

    def __init__(self) -> None:
        self._new: array[int] = array("Q")
        self._hashes: Hashes = np.empty(0, np.uint64)
        self._counts: npt.NDArray[np.int64] = np.empty(0, np.int64)

    def add(self, answers: Iterable[str]) -> None:
        """Add answers."""
        self._new.extend(stable_hash(tidy(answer) or answer.strip()) for answer in answers)
        if len(self._new) >= max(_ROOM, len(self._hashes)):
            self._merge()

    def hashes(self) -> Hashes:
        """Return the hashes of the different answers, ascending."""
        self._merge()
        return self._hashes

    def counts(self) -> npt.NDArray[np.int64]:
        """Return how often each answer of `hashes` occurs."""
        self._merge()
        return self._counts

    def _merge(self) -> None:
        if not self._new:
            return
        new = np.frombuffer(self._new, dtype=np.uint64)
        merged = np.concatenate([self._hashes, new])
        weights = np.concatenate([self._counts, np.ones(len(new), np.int64)])
        self._hashes, inverse = np.unique(merged, return_inverse=True)
        self._counts = np.bincount(inverse, weights, len(self._hashes)).astype(np.int64)
        self._new = array("Q")


@dataclass(frozen=True)
class AnswerOverlap:
    """Shares of test answers that are training answers of other tasks.

    Args:
        tasks: Names of the tasks.
        by_pair: Share of the test answers of the first task that the training answers of the second
            contain, 0..1; pairs of a task with itself or one of its versions, or of files that
            could not be read, are left out.
        of_task: Share that the training answers of all other tasks contain, 0..1, by task.
    """

    tasks: Sequence[str]
    by_pair: Mapping[tuple[str, str], float]
    of_task: Mapping[str, float]

    def nearest(self, task: str) -> tuple[str, float]:
        """Return the other task that contains most of the test answers of a task, and the share.

        Raises:
            ValueError: If no pair of the task was compared.
        """
        shares = {other: share for (one, other), share in self.by_pair.items() if one == task}
        if not shares:
            raise ValueError(f"the answers of task {task!r} were not compared")
        return max(shares.items(), key=lambda pair: pair[1])


def measure_overlap(
    train: Mapping[str, AnswerHashes],
    test: Mapping[str, AnswerHashes],
    updates: Mapping[str, str] | None = None,
) -> AnswerOverlap:
    """Return how many test answers of each task are training answers of other tasks.

    Args:
        train: Training answers by task.
        test: Test answers by task; tasks without one are left out.
        updates: The version that each updating task continues; versions of a task are no other
            tasks.

    Example:
        >>> train, test = {"a": AnswerHashes(), "b": AnswerHashes()}, {"a": AnswerHashes()}
        >>> train["b"].add(["yes", "no"])
        >>> test["a"].add(["Yes.", "yes", "red", "no"])
        >>> measure_overlap(train, test).of_task
        {'a': 0.75}
    """
    by_pair: dict[tuple[str, str], float] = {}
    of_task: dict[str, float] = {}
    first = {name: versions_of(name, updates or {})[-1] for name in [*train, *test]}
    for task, answers in test.items():
        counts = answers.counts()
        others = [name for name in train if first[name] != first[task]]
        if not counts.sum() or not others:
            continue
        shared = np.zeros(len(counts), dtype=bool)
        for name in others:
            known = np.isin(answers.hashes(), train[name].hashes())
            by_pair[task, name] = float(counts[known].sum() / counts.sum())
            shared |= known
        of_task[task] = float(counts[shared].sum() / counts.sum())
    names = dict.fromkeys([*train, *test])
    return AnswerOverlap(list(names), by_pair, of_task)
