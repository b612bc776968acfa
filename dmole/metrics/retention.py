"""What is left of the abilities of the base model: figures of the tasks that are only scored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

from dmole.metrics.matrix import as_matrix


def retention(matrix: npt.ArrayLike, task_names: Sequence[str]) -> dict[str, Any]:
    """Return how the scores of tasks that are never learned moved, as `metrics.json` holds them.

    Args:
        matrix: Scores of shape ``(stages + 1, tasks)``, percent; row 0 before training.
        task_names: One name a column.

    Returns:
        By task ``before``, ``last`` and ``change`` (last - before), None where a cell is missing,
        and the mean change under ``change`` with its ``definition``.

    Example:
        >>> retention([[80.0], [70.0]], ["pope"])["change"]
        -10.0
    """
    scores = as_matrix(matrix)
    before, last = scores[0].tolist(), scores[-1].tolist()
    changes = [after - first for first, after in zip(before, last, strict=True)]
    known = [change for change in changes if not math.isnan(change)]
    return {
        "change": sum(known) / len(known) if known else None,
        "per_task": {
            name: {"before": _or_none(b), "last": _or_none(a), "change": _or_none(c)}
            for name, b, a, c in zip(task_names, before, last, changes, strict=True)
        },
        "definition": (
            f"mean_i (R[S,i] - R[0,i]); tasks that are only scored; divisor {len(known)}"
        ),
    }


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
