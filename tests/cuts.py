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
