"""All continual-learning figures of a run, with the definition of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dmole.metrics.continual import (
    accuracy,
    average,
    backward_transfer,
    forgetting,
    last,
    learning_accuracy,
    transfer,
)
from dmole.metrics.matrix import Scope, TaskOfStage, as_matrix, mean_or_nan, prepare
from dmole.metrics.seen_tasks import mean_average_accuracy

RUN_FORMAT = 2
"""Version of the files of a run folder, the key ``format`` of ``metrics.json``.

Version 1 has no such key. Its ``allocation.csv`` has the columns ``task``, ``module``, ``layer``
and ``expert`` in place of ``expert``, ``modality``, ``unit`` and ``selected``, its
``curriculum.csv`` ``task`` and ``module`` in place of ``expert`` and ``modality``.
"""

FIGURES = ("AVG", "Last", "Learned", "BWT", "MAA", "ACC", "Forgetting", "Transfer")
"""Continual figures of ``metrics.json``, in this order."""

PER_TASK = ("AVG", "Last", "Learned", "BWT", "Forgetting", "Transfer")


def summarize(
    matrix: npt.ArrayLike,
    task_names: Sequence[str],
    avg_scope: Scope = "all",
    task_of_stage: TaskOfStage | None = None,
) -> dict[str, Any]:
    """Return all figures in the form of `metrics.json`; None means missing.

    Args:
        matrix: Scores of shape ``(stages + 1, tasks)``, percent.
        task_names: One name per column.
        avg_scope: Scope of AVG.
        task_of_stage: See `dmole.metrics.continual`.

    Returns:
        Keys AVG, Last, Learned, BWT, MAA, ACC, Forgetting, Transfer (percent or None), ``per_task``
        (the per-task figures) and ``definitions`` (formula, scope and divisor of each figure).

    Raises:
        ValueError: If the number of names and columns differ, or an argument is wrong.

    Example:
        >>> from dmole.metrics import summarize
        >>> figures = summarize([[0, 0], [80, 10], [70, 60]], ["paint", "count"])
        >>> figures["Last"], figures["BWT"], figures["Forgetting"]
        (65.0, -10.0, 10.0)
    """
    scores, learned = prepare(matrix, task_of_stage)
    if len(task_names) != scores.shape[1]:
        raise ValueError(f"{len(task_names)} task names for {scores.shape[1]} columns")
    stages = len(scores) - 1
    columns = {
        "AVG": average(scores, avg_scope, task_of_stage),
        "Last": last(scores),
        "Learned": learning_accuracy(scores, task_of_stage),
        "BWT": backward_transfer(scores, task_of_stage),
        "Forgetting": forgetting(scores, task_of_stage),
        "Transfer": transfer(scores, task_of_stage),
    }
    applies = _applicable(learned, stages, avg_scope)
    figures = {name: mean_or_nan(column[applies[name]]) for name, column in columns.items()}
    figures["MAA"] = mean_average_accuracy(scores, task_of_stage)
    figures["ACC"] = accuracy(scores)
    return {
        **{name: _or_none(figures[name]) for name in FIGURES},
        "per_task": {
            task: {name: _or_none(columns[name][i]) for name in PER_TASK}
            for i, task in enumerate(task_names)
        },
        "definitions": _definitions(applies, avg_scope, stages, len(task_names)),
    }


def retention(matrix: npt.ArrayLike, task_names: Sequence[str]) -> dict[str, Any]:
    """Return the change in the scores of tasks that are never learned, as in `metrics.json`.

    Args:
        matrix: Scores of shape ``(stages + 1, tasks)``, percent; row 0 before training.
        task_names: One name per column.

    Returns:
        By task ``before``, ``last`` and ``change`` (last - before), None if a cell is missing,
        and the mean change under ``change`` with its ``definition``.

    Example:
        >>> retention([[80.0], [70.0]], ["pope"])["change"]
        -10.0
    """
    scores = as_matrix(matrix)
    before, last = scores[0].tolist(), scores[-1].tolist()
    changes = [after - first for first, after in zip(before, last, strict=True)]
    defined = [change for change in changes if not math.isnan(change)]
    return {
        "change": sum(defined) / len(defined) if defined else None,
        "per_task": {
            name: {"before": _or_none(b), "last": _or_none(a), "change": _or_none(c)}
            for name, b, a, c in zip(task_names, before, last, changes, strict=True)
        },
        "definition": (
            f"mean_i (R[S,i] - R[0,i]); tasks that are only scored; divisor {len(defined)}"
        ),
    }


def _definitions(
    applies: dict[str, npt.NDArray[np.bool_]], scope: Scope, stages: int, tasks: int
) -> dict[str, str]:
    """Return the definition of each figure: formula; scope; divisor."""
    past = "tasks learned before the last stage"
    count = {name: int(mask.sum()) for name, mask in applies.items()}
    average_scope = {"all": "all tasks, all stages", "seen": "seen tasks, stages t >= s_i"}[scope]
    if not stages:
        average_scope = "no stage was trained: row 0"
    note = f"stages S={stages}, tasks T={tasks}, s_i the stage that learns task i"
    return {
        "AVG": f"mean_i mean_t R[t,i]; {average_scope}; divisor {count['AVG']} tasks ({note})",
        "Last": f"mean_i R[S,i]; all tasks; divisor {tasks}",
        "Learned": f"mean_i R[s_i,i]; tasks learned by the last stage; divisor {count['Learned']}",
        "BWT": f"mean_i (R[S,i] - R[s_i,i]); {past}; divisor {count['BWT']}",
        "MAA": f"mean_t mean_i R[t,i]; tasks seen by stage t = 1..S; divisor {stages} stages",
        "ACC": f"mean_i R[S,i]; all tasks; divisor {tasks}",
        "Forgetting": (
            f"mean_i (max_t R[t,i] - R[S,i]), s_i <= t < S; {past}; divisor {count['Forgetting']}"
        ),
        "Transfer": (
            "mean_i (mean_t R[t,i] - R[0,i]), 1 <= t < s_i; "
            f"tasks with a stage before theirs; divisor {count['Transfer']}"
        ),
    }


def _applicable(
    learned: npt.NDArray[np.int64], stages: int, scope: Scope
) -> dict[str, npt.NDArray[np.bool_]]:
    """Return the tasks to which each per-task figure applies, regardless of missing cells."""
    everyone = np.ones_like(learned, dtype=bool)
    return {
        "AVG": learned <= stages if scope == "seen" and stages else everyone,
        "Last": everyone,
        "Learned": learned <= stages,
        "BWT": learned < stages,
        "Forgetting": learned < stages,
        "Transfer": learned > 1 if stages else ~everyone,
    }


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
