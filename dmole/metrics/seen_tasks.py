"""Figures over the tasks seen so far: their mean score after each stage, and MAA."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dmole.metrics.matrix import Array, TaskOfStage, mean_or_nan, prepare


def mean_average_accuracy(matrix: npt.ArrayLike, task_of_stage: TaskOfStage | None = None) -> float:
    r"""Return MAA: the mean over stages of the mean score on the tasks seen so far.

    .. math:: \mathrm{MAA} = \frac{1}{S} \sum_{t=1}^{S}
        \frac{1}{|\{i: s_i \le t\}|} \sum_{i: s_i \le t} R_{t,i}

    Args:
        matrix: Scores of shape ``(stages + 1, tasks)``, percent.
        task_of_stage: See `dmole.metrics.continual`.

    Returns:
        Percent, NaN without stages or if a cell is missing.

    Raises:
        ValueError: If the matrix is not 2-D or `task_of_stage` wrong.

    Source:
        CoIN (arXiv 2403.08350); the lower triangle of :math:`R`.

    Example:
        >>> mean_average_accuracy([[0, 0], [80, 10], [70, 60]])
        72.5
    """
    return mean_or_nan(seen_means(matrix, task_of_stage))


def seen_means(matrix: npt.ArrayLike, task_of_stage: TaskOfStage | None = None) -> Array:
    """Return the mean score on the seen tasks after each stage.

    Args:
        matrix: Scores of shape ``(stages + 1, tasks)``, percent.
        task_of_stage: See `dmole.metrics.continual`.

    Returns:
        Shape ``(stages,)``, percent.

    Raises:
        ValueError: If the matrix is not 2-D or `task_of_stage` wrong.

    Example:
        >>> seen_means([[0, 0], [80, 10], [70, 60]]).tolist()
        [80.0, 65.0]
    """
    scores, learned = prepare(matrix, task_of_stage)
    return np.array([mean_or_nan(scores[t, learned <= t]) for t in range(1, len(scores))])
