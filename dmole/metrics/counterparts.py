"""Figures under the definitions of other libraries and papers, beside those of `summarize`.

Several equal a figure of ours where all tasks are learned; they are given under their names, so
that a published table is compared with the right number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dmole.metrics.base import TaskScore
from dmole.metrics.continual import backward_transfer
from dmole.metrics.matrix import Array, TaskOfStage, mean_or_nan, prepare
from dmole.metrics.seen_tasks import mean_average_accuracy

KEY = "counterparts"
"""Key of ``metrics.json``."""

COUNTERPARTS = ("MFN", "FAA", "BWT/T", "MAP", "MIF")
"""The figures, in this order."""

OBEDIENCE = "obedient"
"""Detail of a task's score: the share of its answers that have the requested form, percent."""


def final_mean(matrix: npt.ArrayLike, task_of_stage: TaskOfStage | None = None) -> float:
    r"""Return MFN: the mean of the last row over the tasks learned so far.

    .. math:: \mathrm{MFN} = \frac{1}{|\{i: s_i \le S\}|} \sum_{i: s_i \le S} R_{S,i}

    Args:
        matrix: Scores of shape ``(stages + 1, tasks)``, percent.
        task_of_stage: See `dmole.metrics.continual`.

    Returns:
        Percent; without stages the mean of row 0, NaN if a cell is missing.

    Raises:
        ValueError: If the matrix is not 2-D or `task_of_stage` wrong.

    Source:
        MCITlib, "mean final accuracy"; it equals Last and ACC once all tasks are learned.

    Example:
        >>> final_mean([[0, 0], [80, 10]]), final_mean([[0, 0], [80, 10], [70, 60]])
        (80.0, 65.0)
    """
    final, _ = _learned_row(matrix, task_of_stage)
    return mean_or_nan(final)


def weighted_final_mean(
    matrix: npt.ArrayLike, sizes: Sequence[float], task_of_stage: TaskOfStage | None = None
) -> float:
    r"""Return FAA: the mean of the last row, weighted by the numbers of test samples.

    .. math:: \mathrm{FAA} = \sum_{i: s_i \le S} n_i R_{S,i} \Big/ \sum_{i: s_i \le S} n_i

    Args:
        matrix: Scores of shape ``(stages + 1, tasks)``, percent.
        sizes: Number of test samples :math:`n_i` of each task, shape ``(tasks,)``.
        task_of_stage: See `dmole.metrics.continual`.

    Returns:
        Percent, NaN if a cell is missing or there is no test sample.

    Raises:
        ValueError: If the number of sizes is not that of the tasks, or one is negative.

    Source:
        DGG, arXiv 2511.15164 (second-hand).

    Example:
        >>> weighted_final_mean([[0, 0], [80, 10], [70, 60]], [300, 100])
        67.5
    """
    final, learned = _learned_row(matrix, task_of_stage)
    numbers = np.asarray(sizes, dtype=np.float64)
    if numbers.shape != learned.shape or not (numbers >= 0).all():
        raise ValueError(f"expected {len(learned)} numbers of test samples, got {list(sizes)}")
    weights = numbers[learned]
    total = float(weights.sum())
    return float((weights * final).sum()) / total if total else math.nan


def backward_transfer_by_tasks(
    matrix: npt.ArrayLike, task_of_stage: TaskOfStage | None = None
) -> float:
    r"""Return BWT divided by the number of all learned tasks, not of those learned earlier.

    .. math:: \frac{1}{|\{i: s_i \le S\}|} \sum_{i: s_i < S} (R_{S,i} - R_{s_i,i})

    Args:
        matrix: Scores of shape ``(stages + 1, tasks)``, percent.
        task_of_stage: See `dmole.metrics.continual`.

    Returns:
        Percentage points, NaN if a cell is missing or no task was learned before the last stage.

    Raises:
        ValueError: If the matrix is not 2-D or `task_of_stage` wrong.

    Source:
        MLLM-CTBench (second-hand) and the code of SAPT; their papers divide by :math:`T - 1`.

    Example:
        >>> backward_transfer_by_tasks([[0, 0], [80, 10], [70, 60]])
        -5.0
    """
    scores, learned = prepare(matrix, task_of_stage)
    stages = len(scores) - 1
    earlier = learned < stages
    changes = backward_transfer(scores, task_of_stage)[earlier]
    return float(changes.sum()) / int((learned <= stages).sum()) if earlier.any() else math.nan


def counterparts(
    matrix: npt.ArrayLike,
    task_of_stage: TaskOfStage | None = None,
    sizes: Sequence[float] | None = None,
    obedience: Sequence[float] = (),
) -> dict[str, Any]:
    """Return the figures of `COUNTERPARTS` in the form of ``metrics.json``; None means missing.

    Args:
        matrix: Scores of shape ``(stages + 1, tasks)``, percent.
        task_of_stage: See `dmole.metrics.continual`.
        sizes: Number of test samples of each task; None if unknown.
        obedience: Share of answers of the requested form, percent, of each learned task whose
            metric knows the form.

    Returns:
        The figures, ``definitions`` and ``missing``: the reason for each missing one.

    Raises:
        ValueError: If an argument is wrong.

    Example:
        >>> figures = counterparts([[0, 0], [80, 10], [70, 60]], sizes=[300, 100])
        >>> [figures[name] for name in COUNTERPARTS]
        [65.0, 67.5, -5.0, 72.5, None]
        >>> figures["missing"]
        {'MIF': 'no metric of the learned tasks knows the form of the answers'}
    """
    scores, learned = prepare(matrix, task_of_stage)
    stages = len(scores) - 1
    figures = {
        "MFN": final_mean(scores, task_of_stage),
        "FAA": math.nan if sizes is None else weighted_final_mean(scores, sizes, task_of_stage),
        "BWT/T": backward_transfer_by_tasks(scores, task_of_stage),
        "MAP": mean_average_accuracy(scores, task_of_stage),
        "MIF": mean_or_nan(np.asarray(obedience, dtype=np.float64)) if stages else math.nan,
    }
    absent = {} if stages else dict.fromkeys(("BWT/T", "MAP", "MIF"), "no stage was trained")
    absent |= {"FAA": "the numbers of test samples are unknown"} if sizes is None else {}
    if stages and not (learned < stages).any():
        absent["BWT/T"] = "no task was learned before the last stage"
    if stages and not len(obedience):
        absent["MIF"] = "no metric of the learned tasks knows the form of the answers"
    missing = [name for name in COUNTERPARTS if math.isnan(figures[name])]
    return {
        **{name: None if name in missing else figures[name] for name in COUNTERPARTS},
        "definitions": _definitions(learned, stages, len(obedience)),
        "missing": {name: absent.get(name, "a score that it needs is missing") for name in missing},
    }


def counterparts_of_run(
    matrix: npt.ArrayLike,
    tasks: Sequence[str],
    task_of_stage: Sequence[Sequence[int]],
    sizes: Mapping[str, int],
    scores: Mapping[str, TaskScore],
) -> dict[str, Any]:
    """Return the figures of a run after its last evaluation.

    Args:
        matrix: Scores of the tasks to learn, ``(stages + 1, tasks)``, percent.
        tasks: Names of the columns.
        task_of_stage: Columns that each stage learns.
        sizes: Number of all test samples by task; FAA is missing where a task has none.
        scores: Scores of the last evaluation by task.
    """
    learned = dict.fromkeys(tasks[column] for columns in task_of_stage for column in columns)
    shares = (scores[task].details.get(OBEDIENCE) for task in learned if task in scores)
    obedience = [share for share in shares if isinstance(share, float)]
    numbers = [sizes[task] for task in tasks] if all(task in sizes for task in tasks) else None
    return counterparts(matrix, task_of_stage, numbers, obedience)


def _definitions(learned: npt.NDArray[np.int64], stages: int, forms: int) -> dict[str, str]:
    """Return the definition of each figure: formula; scope; divisor."""
    scope = "tasks learned by the last stage" if stages else "no stage was trained: row 0"
    count = int((learned <= stages).sum()) if stages else len(learned)
    return {
        "MFN": f"mean_i R[S,i]; {scope}; divisor {count}",
        "FAA": f"sum_i n_i R[S,i] / sum_i n_i, n_i the test samples of task i; {scope}",
        "BWT/T": (
            "sum_i (R[S,i] - R[s_i,i]) over the tasks learned before the last stage, "
            f"divided by the number of learned tasks; divisor {count}"
        ),
        "MAP": f"mean_t AP_t, AP_t = mean_i R[t,i] over the tasks seen by stage t; {stages} stages",
        "MIF": (
            "mean_i of the share of the answers after the last stage that have the requested "
            f"form; tasks whose metric knows it{f'; divisor {forms}' if forms else ''}"
        ),
    }


def _learned_row(
    matrix: npt.ArrayLike, task_of_stage: TaskOfStage | None
) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Return the last row of the learned tasks, and which tasks these are; all without stages."""
    scores, learned = prepare(matrix, task_of_stage)
    stages = len(scores) - 1
    chosen = learned <= stages if stages else np.ones_like(learned, dtype=bool)
    return scores[-1, chosen], chosen
