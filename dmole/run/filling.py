"""Evaluates the stages of a finished run on tasks that were added after them."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from dmole.run.restoring import why_unrepeatable
from dmole.run.state import BEFORE_TRAINING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dmole.callbacks import EvaluationMatrix
    from dmole.module import ContinualModule
    from dmole.run.context import EvaluationPass
    from dmole.run.state import SequenceState
    from dmole.streams.stream import Stage

log = logging.getLogger("dmole")


class RowFiller:
    """Fills empty cells of the matrix in rows of earlier stages, from the experts of those stages.

    Args:
        state: Has the stages and the position of the run.
        module: Has experts and router.
        matrix: The callback that holds the results of evaluations.
        answer: Answers the samples of an evaluation pass.
        save: Saves the run after a row.
    """

    def __init__(
        self,
        state: SequenceState,
        module: ContinualModule,
        matrix: EvaluationMatrix,
        answer: Callable[[ContinualModule, EvaluationPass], None],
        save: Callable[[], None],
    ) -> None:
        self._state = state
        self._module = module
        self._matrix = matrix
        self._answer = answer
        self._save = save

    def fill(self) -> dict[int, str]:
        """Fill all rows that can be filled. All ranks must call it.

        Returns:
            Why rows stay empty in part, by stage.
        """
        state, matrix = self._state, self._matrix
        left: dict[int, str] = {}
        filled = False
        for stage in [BEFORE_TRAINING, *state.plan]:
            tasks = matrix.empty_tasks(state, stage.index)
            if not tasks:
                continue
            reason = why_unrepeatable(state, stage, self._module.router)
            if reason:
                left[stage.index] = reason
            else:
                answers = matrix.answers.state_dict()
                with state.revisited(stage):
                    self._fill(stage, tasks)
                matrix.answers.load_state_dict(answers)  # those of the newest evaluation
                filled = True
                self._save()
        if filled and state.stage.index == len(state.plan):  # else the next evaluation does so
            routed = matrix.plan(state, self._module)
            if routed.pending:
                self._answer(self._module, routed)
            matrix.renew_metrics(state, self._module, routed)
            self._save()
        return left

    def _fill(self, stage: Stage, tasks: Sequence[str]) -> None:
        """Evaluate the model after a stage, which is the current one, on some tasks."""
        state, matrix, module = self._state, self._matrix, self._module
        log.info("stage %d is evaluated on %s", stage.index, ", ".join(tasks))
        routed = _only(matrix.plan(state, module), tasks)
        self._answer(module, routed)
        oracle = _only(matrix.plan_oracle(state, module, routed), tasks)
        if oracle.pending:
            self._answer(module, oracle)
        matrix.fill_row(state, routed, oracle, tasks)


def warn_of_empty_cells(left: Mapping[int, str]) -> None:
    """Log a line for each reason why rows stay empty in part; see :meth:`RowFiller.fill`."""
    for reason in dict.fromkeys(left.values()):
        rows = ", ".join(str(stage) for stage, text in left.items() if text == reason)
        log.warning("rows of stages %s keep empty cells: %s", rows, reason)


def _only(evaluation: EvaluationPass, tasks: Sequence[str]) -> EvaluationPass:
    """Return a pass that answers the samples of some tasks."""
    pending = evaluation.pending or {}
    return replace(evaluation, pending={t: rows for t, rows in pending.items() if t in tasks})
