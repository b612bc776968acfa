"""Helpers for figures over the evaluation matrix: checks, stages and means."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Scope = Literal["all", "seen"]
TaskOfStage = Sequence[int | Sequence[int]]
"""Zero-based task or tasks that each stage learns."""


def learning_stages(
    stages: int, tasks: int, task_of_stage: TaskOfStage | None = None
) -> npt.NDArray[np.int64]:
    """Return the first stage that learns each task, ``stages + 1`` if none did yet.

    Args:
        stages: Number of stages trained so far.
        tasks: Number of tasks.
        task_of_stage: Zero-based task or tasks of each stage; None means stage ``t`` learns the
            ``t``-th task.

    Returns:
        Stage numbers from 1, of shape ``(tasks,)``.

    Raises:
        ValueError: If there are more stages than tasks without `task_of_stage`, if its length
            differs from the number of stages, or if it names a task that does not exist.

    Example:
        >>> learning_stages(2, 3).tolist()
        [1, 2, 3]
        >>> learning_stages(1, 3, [[0, 1, 2]]).tolist()
        [1, 1, 1]
    """
    if task_of_stage is None:
        if stages > tasks:
            raise ValueError(f"{stages} stages but {tasks} tasks: task_of_stage must say which")
        task_of_stage = range(stages)
    if len(task_of_stage) != stages:
        raise ValueError(f"task_of_stage has {len(task_of_stage)} entries for {stages} stages")
    learned = np.full(tasks, stages + 1, dtype=np.int64)
    for stage, entry in enumerate(task_of_stage, start=1):
        for task in [entry] if isinstance(entry, int) else entry:
            if not 0 <= task < tasks:
                raise ValueError(f"task_of_stage[{stage - 1}] names task {task} of {tasks}")
            learned[task] = min(learned[task], stage)
    return learned


def as_matrix(matrix: npt.ArrayLike) -> Array:
    """Return a float64 copy of shape ``(stages + 1, tasks)``; reject other shapes."""
    # a copy, so that no result aliases the caller's data
    scores: Array = np.asarray(matrix, dtype=np.float64).copy()
    if scores.ndim != 2 or 0 in scores.shape:
        raise ValueError(f"matrix must be (stages + 1, tasks), got shape {scores.shape}")
    return scores


def prepare(
    matrix: npt.ArrayLike, task_of_stage: TaskOfStage | None
) -> tuple[Array, npt.NDArray[np.int64]]:
    """Return the matrix as a checked float64 copy and the stage that learns each task."""
    scores = as_matrix(matrix)
    return scores, learning_stages(len(scores) - 1, scores.shape[1], task_of_stage)


def per_task(scores: Array, figure: Callable[[int], float]) -> Array:
    """Return a figure of each task, shape ``(tasks,)``."""
    return np.array([figure(i) for i in range(scores.shape[1])], dtype=np.float64)


def mean_or_nan(values: Array) -> float:
    """Return the mean, or NaN for no values (NumPy would warn)."""
    return float(values.mean()) if values.size else math.nan
