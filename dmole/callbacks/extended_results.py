"""Results of a finished run as those of a run that extends it by more tasks."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from dmole.callbacks.answers import DECODING
from dmole.callbacks.evaluation_plan import decoding_digest
from dmole.storage.values import listed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dmole.module import ContinualModule
    from dmole.run.extending import Parent
    from dmole.run.state import SequenceState

Rows = list[list[float]]
"""A matrix, ``(stages + 1, tasks)``; NaN is not evaluated."""


def extended_results(
    saved: dict[str, Any], state: SequenceState, module: ContinualModule, parent: Parent
) -> dict[str, Any]:
    """Return the saved results of evaluations with columns and rows for the new tasks.

    Args:
        saved: Results of the finished run, as `EvaluationMatrix` saves them.
        state: Has plan and data of the new run.
        module: Has the base model, which answers depend on.
        parent: The finished run.
    """
    tasks, stages = list(state.data.column_names), len(state.plan)
    before = [task for task in parent.tasks if task in tasks]  # an update may have no column
    answers = listed(saved["answers"])
    metrics = None if saved.get("metrics") is None else json.loads(saved["metrics"])
    return {
        **saved,
        "losses": {},
        "matrix": extended_matrix(listed(saved["matrix"]), before, tasks, stages),
        "oracle": extended_matrix(listed(saved["oracle"]), before, tasks, stages),
        "errors": extended_matrix(listed(saved.get("errors", [])), before, tasks, stages),
        "answers": _kept_answers(answers, state, module, parent),
        "metrics": None
        if metrics is None
        else json.dumps({**metrics, "parent": parent.for_metrics()}),
    }


def extended_matrix(
    matrix: Sequence[Sequence[float]], before: Sequence[str], now: Sequence[str], stages: int
) -> Rows:
    """Return a matrix with empty cells for new tasks and new stages.

    Args:
        matrix: ``(old stages + 1, old tasks)``.
        before: Names of the old columns.
        now: Names of all columns; old ones keep their order, not their place.
        stages: Number of all stages.

    Example:
        >>> extended_matrix([[1.0, 2.0]], ["a", "scored"], ["a", "b", "scored"], 1)
        [[1.0, nan, 2.0], [nan, nan, nan]]
    """
    rows = [dict(zip(before, row, strict=True)) for row in matrix]
    rows += [{} for _ in range(stages + 1 - len(rows))]
    return [[row.get(task, math.nan) for task in now] for row in rows]


def _kept_answers(
    answers: Sequence[Any], state: SequenceState, module: ContinualModule, parent: Parent
) -> list[Any]:
    """Return the answers under the settings of decoding of the new run.

    They count on if only tasks were added to those settings; else they are no longer found.
    """
    old = decoding_digest(state, module, parent.tasks)
    new = decoding_digest(state, module)
    return [
        [key, [[n, new if (n, d) == (DECODING, old) else d] for n, d in gates], text]
        for key, gates, text in answers
    ]
