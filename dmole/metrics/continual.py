r"""Continual-learning figures: pure functions over the evaluation matrix.

The matrix :math:`R` has shape ``(stages + 1, tasks)``: row 0 is the model before training, row
``t`` after stage ``t``; a cell that was not evaluated is NaN. Write :math:`S` for the number of
stages and :math:`s_i` for the stage that learns task :math:`i`; in a sequence :math:`s_i = i`.
`task_of_stage` overrides this: one entry per stage, an index or several (joint training of three
tasks is ``[[0, 1, 2]]``). During a run, :math:`S < T` and later tasks are *unseen*.

Undefined figures are NaN. A figure of one task is NaN if a required cell is missing or if it does
not apply to that task (BWT of the task learned last). The mean over tasks covers the tasks to which
the figure applies, and is NaN if one of them lacks a cell. A missing value never becomes 0.
Without any stage (zero-shot) the model never changes: Last, ACC and AVG are row 0, the rest NaN.
"""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import numpy.typing as npt

from dmole.metrics.matrix import (
    Array,
    Scope,
    TaskOfStage,
    as_matrix,
    mean_or_nan,
    per_task,
    prepare,
)


def average(
    matrix: npt.ArrayLike, scope: Scope = "all", task_of_stage: TaskOfStage | None = None
) -> Array:
    r"""Return AVG of each task: its mean score over the stages.

    .. math:: \mathrm{AVG}_i = \frac{1}{S} \sum_{t=1}^{S} R_{t,i}

    Args:
        matrix: Scores of shape ``(stages + 1, tasks)``, percent.
        scope: "all" takes every stage, "seen" those from :math:`s_i` on.
        task_of_stage: See the module docstring.

    Returns:
        Shape ``(tasks,)``, percent.

    Raises:
        ValueError: If the matrix is not 2-D, the scope unknown or `task_of_stage` wrong.

    Source:
        D-MoLE (arXiv 2506.11672). The scope "all" is inferred from its release, which evaluates
        unseen tasks too.

    Example:
        >>> average([[0, 0], [80, 10], [70, 60]]).tolist()
        [75.0, 35.0]
        >>> average([[0, 0], [80, 10], [70, 60]], scope="seen").tolist()
        [75.0, 60.0]
    """
    scores, learned = prepare(matrix, task_of_stage)
    if scope not in get_args(Scope):
        raise ValueError(f"avg_scope must be 'all' or 'seen', got {scope!r}")
    if len(scores) == 1:
        return np.array(scores[0])
    first = learned if scope == "seen" else np.ones_like(learned)
    return per_task(scores, lambda i: mean_or_nan(scores[first[i] :, i]))


def last(matrix: npt.ArrayLike) -> Array:
    r"""Return Last of each task: the final row, :math:`R_{S,i}`.

    Args:
        matrix: Scores of shape ``(stages + 1, tasks)``, percent.

    Returns:
        Shape ``(tasks,)``, percent. Row 0 if no stage was trained (zero-shot).

    Raises:
        ValueError: If the matrix is not 2-D.

    Example:
        >>> last([[0, 0], [80, 10], [70, 60]]).tolist()
        [70.0, 60.0]
    """
    final: Array = as_matrix(matrix)[-1]
    return final


def learning_accuracy(matrix: npt.ArrayLike, task_of_stage: TaskOfStage | None = None) -> Array:
    r"""Return Learned of each task: its score after the stage that learns it, :math:`R_{s_i,i}`.

    Args:
        matrix: Scores of shape ``(stages + 1, tasks)``, percent.
        task_of_stage: See the module docstring.

    Returns:
        Shape ``(tasks,)``, percent. It applies to tasks with :math:`s_i \le S`.

    Raises:
        ValueError: If the matrix is not 2-D or `task_of_stage` wrong.

    Source:
        The learning accuracy of Riemer et al., 2019, https://arxiv.org/abs/1810.11910.

    Example:
        >>> learning_accuracy([[0, 0], [80, 10], [70, 60]]).tolist()
        [80.0, 60.0]
    """
    scores, learned = prepare(matrix, task_of_stage)
    stages = len(scores) - 1
    return per_task(scores, lambda i: scores[learned[i], i] if learned[i] <= stages else math.nan)


def backward_transfer(matrix: npt.ArrayLike, task_of_stage: TaskOfStage | None = None) -> Array:
    r"""Return BWT of each task: the change by later stages, :math:`R_{S,i} - R_{s_i,i}`.

    It applies to tasks with :math:`s_i < S`, in a sequence all but the last; its mean has the
    divisor :math:`T - 1`.

    Args:
        matrix: Scores of shape ``(stages + 1, tasks)``, percent.
        task_of_stage: See the module docstring.

    Returns:
        Shape ``(tasks,)``, percentage points; negative means forgetting.

    Raises:
        ValueError: If the matrix is not 2-D or `task_of_stage` wrong.

    Source:
        Lopez-Paz and Ranzato, 2017, https://arxiv.org/abs/1706.08840.

    Example:
        >>> backward_transfer([[0, 0], [80, 10], [70, 60]]).tolist()
        [-10.0, nan]
    """
    scores, learned = prepare(matrix, task_of_stage)
    final = len(scores) - 1
    return per_task(
        scores,
        lambda i: scores[final, i] - scores[learned[i], i] if learned[i] < final else math.nan,
    )


def forgetting(matrix: npt.ArrayLike, task_of_stage: TaskOfStage | None = None) -> Array:
    r"""Return Forgetting of each task: :math:`\max_{s_i \le t < S} R_{t,i} - R_{S,i}`.

    Args:
        matrix: Scores of shape ``(stages + 1, tasks)``, percent.
        task_of_stage: See the module docstring.

    Returns:
        Shape ``(tasks,)``, percentage points; positive means forgetting. It applies to tasks
        with :math:`s_i < S`.

    Raises:
        ValueError: If the matrix is not 2-D or `task_of_stage` wrong.

    Source:
        Chaudhry et al., 2018, https://arxiv.org/abs/1801.10112.

    Example:
        >>> forgetting([[0, 0], [80, 10], [70, 60]]).tolist()
        [10.0, nan]
    """
    scores, learned = prepare(matrix, task_of_stage)
    final = len(scores) - 1
    return per_task(
        scores,
        lambda i: (
            np.max(scores[learned[i] : final, i]) - scores[final, i]
            if learned[i] < final
            else math.nan
        ),
    )


def transfer(matrix: npt.ArrayLike, task_of_stage: TaskOfStage | None = None) -> Array:
    r"""Return Transfer of each task: its mean score before it is learned, minus zero-shot.

    .. math:: \mathrm{Transfer}_i = \frac{1}{s_i - 1} \sum_{t=1}^{s_i - 1} R_{t,i} - R_{0,i}

    Args:
        matrix: Scores of shape ``(stages + 1, tasks)``, percent.
        task_of_stage: See the module docstring.

    Returns:
        Shape ``(tasks,)``, percentage points. It applies to tasks with a stage before :math:`s_i`.

    Raises:
        ValueError: If the matrix is not 2-D or `task_of_stage` wrong.

    Example:
        >>> transfer([[5, 5], [80, 10], [70, 60]]).tolist()
        [nan, 5.0]
    """
    scores, learned = prepare(matrix, task_of_stage)
    return per_task(scores, lambda i: mean_or_nan(scores[1 : learned[i], i]) - scores[0, i])


def accuracy(matrix: npt.ArrayLike) -> float:
    r"""Return ACC: the final row's mean over all tasks, :math:`\frac1T \sum_i R_{S,i}`.

    Args:
        matrix: Scores of shape ``(stages + 1, tasks)``, percent.

    Returns:
        Percent; NaN if a cell of the row is missing.

    Raises:
        ValueError: If the matrix is not 2-D.

    Example:
        >>> accuracy([[0, 0], [80, 10], [70, 60]])
        65.0
    """
    return mean_or_nan(last(matrix))
