"""During a stage's training: save it every few steps, and end it where that was asked for."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, cast

from lightning.pytorch import LightningModule, Trainer

from dmole.callbacks.base import ContinualCallback, parts
from dmole.distributed import gather_objects
from dmole.run.random_state import random_state, restore_random_state

if TYPE_CHECKING:
    from dmole.data.loader import ResumableLoader
    from dmole.module import ContinualModule
    from dmole.trainer import ContinualTrainer

log = logging.getLogger("dmole")


class StageCheckpoint(ContinualCallback):
    """Saves the stage that trains, so that a run cut short goes on within the epoch.

    A checkpoint holds the current expert, its optimizer, the place in the data and the states of
    all random generators; the run then ends as if it had never stopped. Writes
    ``checkpoints/stage.ckpt``, which is gone once the stage is trained.

    Args:
        every_n_steps: Optimizer steps between two checkpoints; 0 saves only on a signal.

    Raises:
        ValueError: If the number is negative.
    """

    def __init__(self, every_n_steps: int = 100) -> None:
        if every_n_steps < 0:
            raise ValueError(f"every_n_steps must not be negative, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self._restored: dict[str, Any] | None = None
        self._last_step = 0
        self._saved_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on counting time and samples where the checkpoint was made."""
        sequence, _, _ = parts(trainer, pl_module)
        self._last_step = self._saved_step = trainer.global_step
        if self._restored is not None:
            sequence.samples_trained = self._restored["samples"]
            sequence.clock.carry("train", self._restored["seconds"])
            # Lightning restores loaders too, but only those it has not asked for the number of
            # steps before; ours takes its state until it gives its first batch
            _loader(trainer).load_state_dict(self._restored["loader"])
            log.info("goes on at step %d", trainer.global_step)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set the random generators as they were, right before the first step draws."""
        if self._restored is not None:
            restore_random_state(self._restored["ranks"][trainer.global_rank])
            self._restored = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save after an optimizer step if it is time, or if the run has to end.

        Raises:
            Interrupted: If the run was asked to end; the stage is saved then.
        """
        sequence, module, _ = parts(trainer, pl_module)
        step = trainer.global_step
        if step == self._last_step:
            return  # gradients are being accumulated, and they are not part of a checkpoint
        self._last_step = step
        stop = sequence.interruption.agreed(trainer.strategy)
        if trainer.is_last_batch and trainer.current_epoch + 1 == trainer.max_epochs:
            return  # the stage is trained, and saved as a whole
        if stop or 0 < self.every_n_steps <= step - self._saved_step:
            sequence.sequence_checkpoint.save_stage(sequence, module)
            self._saved_step = step
        if stop:
            sequence.interruption.end()

    def on_stage_trained(self, trainer: ContinualTrainer, module: ContinualModule) -> None:
        """Forget a state that no step has asked for."""
        self._restored = None

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add what Lightning does not save; called by all ranks alike."""
        sequence, module, _ = parts(trainer, pl_module)
        checkpoint |= sequence.sequence_checkpoint.stage_content(sequence, module)
        checkpoint["sequence_stage"] = {
            "ranks": gather_objects(random_state()),
            "loader": _loader(trainer).state_dict(),
            "samples": sequence.samples_trained,
            "seconds": sequence.clock.elapsed("train"),
        }

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the state until the first step."""
        self._restored = checkpoint["sequence_stage"]


def _loader(trainer: Trainer) -> ResumableLoader:
    return cast("ResumableLoader", trainer.train_dataloader)
