"""During training: record the steps that were left out because a value was not finite."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule, Trainer

from dmole.callbacks.base import ContinualCallback, parts

if TYPE_CHECKING:
    from dmole.module import ContinualModule
    from dmole.run.state import SequenceState

log = logging.getLogger("dmole")


class SkippedSteps(ContinualCallback):
    """Records the optimizer steps that ``skip_nonfinite_steps`` has left out.

    They are logged for each stage and listed in ``metrics.json`` as ``skipped_steps``.

    Attributes:
        rows: One for each step: stage, expert, step, reason and samples.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the guard know how many steps of the stage were left out before a resume."""
        state, module = parts(trainer, pl_module)
        module.guard.begin(sum(row["stage"] == state.stage.index for row in self.rows))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Collect the step that was left out, before a checkpoint is written."""
        state, module = parts(trainer, pl_module)
        for record in module.guard.collect():
            position = {"stage": state.stage.index, "expert": state.stage.expert}
            self.rows.append({**position, "step": trainer.global_step, **record})

    def on_stage_trained(self, state: SequenceState, module: ContinualModule) -> None:
        """Log the number of steps of the stage that were left out."""
        skipped = sum(row["stage"] == state.stage.index for row in self.rows)
        if skipped:
            log.warning("stage %d: %d steps were skipped", state.stage.index, skipped)
        if module.guard.scaler_skips:
            log.info("the loss scaler skipped %d steps", module.guard.scaler_skips)

    def state_dict(self) -> dict[str, Any]:
        """Return the rows."""
        return {"rows": self.rows} if self.rows else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load saved rows."""
        self.rows = list(state_dict["rows"])
