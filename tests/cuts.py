"""Ends runs between two steps, as a process that is gone would."""

from __future__ import annotations

from typing import Any

from dmole.callbacks import ContinualCallback


class CutError(Exception):
    """Stands for whatever ends a process."""


class CutAfter(ContinualCallback):
    """Ends the run at a step, before that step is saved."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == self.step:
            raise CutError


class CutAt(ContinualCallback):
    """Ends the run in the middle of a phase, when part of it is done."""

    def __init__(self, stage: int, phase: str) -> None:
        self.place = stage, phase

    def _cut(self, state: Any) -> None:
        if (state.stage.index, state.phase) == self.place:
            raise CutError

    def on_train_batch_end(
        self,
        trainer: Any,
        module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self._cut(trainer.sequence)

    def on_stage_trained(self, state: Any, module: Any) -> None:
        self._cut(state)

    def on_evaluation_end(self, state: Any, module: Any) -> None:
        self._cut(state)
