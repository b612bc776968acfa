"""During the training of a stage: save it every few steps, and end it on a signal."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from dmole.callbacks.base import ContinualCallback, parts
from dmole.distributed import gather_objects
from dmole.run.checkpoint import save_stage, stage_content
from dmole.run.lightning_private import check_progress
from dmole.run.random_state import random_state, restore_random_state
from dmole.run.retraining import SavedOptimizer, adapt_checkpoint, continue_optimizer
from dmole.run.state import sequence_of

if TYPE_CHECKING:
    from dmole.data.loader import ResumableLoader
    from dmole.module import ContinualModule
    from dmole.run.state import SequenceState

log = logging.getLogger("dmole")


class StageCheckpoint(ContinualCallback, Checkpoint):
    """Saves the stage in training, so that an interrupted run resumes within the epoch.

    A checkpoint holds the experts in training, their optimizer, the position in the data and the
    states of all random generators, so a resumed run gives the same result as an uninterrupted
    one. Writes ``checkpoints/stage.ckpt``, which is removed after the training of the stage.
    Lightning runs checkpoint callbacks last, so the checkpoint includes the effects of the other
    callbacks at a step. The callback also counts the samples of the stage.

    Args:
        every_n_steps: Optimizer steps between two checkpoints; 0 saves only on a signal.

    Raises:
        ValueError: If ``every_n_steps`` is negative.
    """

    def __init__(self, every_n_steps: int = 100) -> None:
        if every_n_steps < 0:
            raise ValueError(f"every_n_steps must not be negative, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self._restored: dict[str, Any] | None = None
        self._optimizer: SavedOptimizer | None = None
        self._last_step = 0
        self._saved_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Continue to count time and samples from the values in the checkpoint."""
        state = sequence_of(trainer)
        self._last_step = self._saved_step = trainer.global_step
        if self._restored is not None:
            state.samples_trained = self._restored["samples"]
            state.clock.carry("train", self._restored["seconds"])
            # Lightning restores loaders only before it has read their length, so do it here;
            # the loader accepts a state until it yields its first batch
            _loader(trainer).load_state_dict(self._restored["loader"])
            if self._optimizer is not None:
                continue_optimizer(trainer, parts(trainer, pl_module)[1], self._optimizer)
                self._optimizer = None
            parts(trainer, pl_module)[1].restored.leave()
            log.info("resuming at step %d", trainer.global_step)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Restore the random generators right before the first step."""
        if self._restored is not None:
            restored = parts(trainer, pl_module)[1].restored
            restored.enter()
            restore_random_state(self._restored["ranks"][trainer.global_rank])
            restored.leave()
            self._restored = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save after an optimizer step if a checkpoint is due or the run has to end.

        Raises:
            Interrupted: If a signal requested the end of the run; the stage is saved before.
        """
        state = sequence_of(trainer)
        state.samples_trained += len(batch) * trainer.world_size
        step = trainer.global_step
        if step == self._last_step:
            return  # a checkpoint cannot hold accumulated gradients
        self._last_step = step
        stop = state.interruption.agreed(state.strategy)
        if trainer.is_last_batch and trainer.current_epoch + 1 == trainer.max_epochs:
            return  # the stage is finished, and ``last.ckpt`` will hold it
        if stop or 0 < self.every_n_steps <= step - self._saved_step:
            save_stage(state)
            self._saved_step = step
        if stop:
            state.interruption.end()

    def on_stage_trained(self, state: SequenceState, module: ContinualModule) -> None:
        """Discard a restored state that no step has used."""
        self._restored = None

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the state that Lightning does not save. All ranks must call it."""
        state, module = parts(trainer, pl_module)
        checkpoint |= stage_content(state, module)
        checkpoint["sequence_stage"] = {
            "ranks": gather_objects(random_state()),
            "loader": _loader(trainer).state_dict(),
            "samples": state.samples_trained,
            "seconds": state.clock.elapsed("train"),
        }

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the saved state until the first step; adapt it to settings that have changed."""
        _check_types(trainer, checkpoint)
        self._restored = checkpoint["sequence_stage"]
        state, module = parts(trainer, pl_module)
        if state.saved_settings:
            kind = state.saved_settings["setting 'optimizer'"].partition(" ")[0]
            self._optimizer = adapt_checkpoint(state, module, checkpoint, kind)


def _loader(trainer: Trainer) -> ResumableLoader:
    return cast("ResumableLoader", trainer.train_dataloader)


def _check_types(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Refuse values of other types that would fail late, or leave the optimizer without state."""
    check_progress(trainer, checkpoint)
    for key in ("optimizer_states", "lr_schedulers"):
        if len(checkpoint[key]) != 1:
            raise ValueError(f"{key} has {len(checkpoint[key])} entries instead of 1")
    for key, kind in (("samples", int), ("seconds", float)):
        value = checkpoint["sequence_stage"][key]
        if type(value) is not kind:
            raise ValueError(f"the {key} of the stage are {value!r:.80}")
