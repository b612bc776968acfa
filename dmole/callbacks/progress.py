"""The position of a run in its sequence, and the remaining time, for displays of progress."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar

from dmole.messages import visible
from dmole.run.remaining import Pace
from dmole.run.state import SequenceState


class StageProgress(ProgressBar):
    """What all displays of progress share: the position in the sequence and the remaining time.

    A display derives from it and from a progress bar of Lightning, and overrides :meth:`show`.
    """

    interval = 1.0
    """Seconds between two texts."""

    shows_beginnings = True
    """Whether a new epoch or task is shown before the interval is over."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin a new measurement."""
        super().setup(trainer, pl_module, stage)
        self._pace = Pace()
        self._batches = 0
        self._loader = 0
        self._shown = time.monotonic()

    def show(self) -> None:
        """Show the current position."""

    def position(self, *, short: bool) -> str:
        """Return stage, task, phase, epoch and remaining time, as far as they are known.

        Args:
            short: Whether the text has to share a line with a bar.

        Example:
            >>> from dmole.callbacks import StageProgressBar
            >>> from lightning.pytorch import Trainer
            >>> bar = StageProgressBar()
            >>> bar.setup(Trainer(logger=False, accelerator="cpu"), None, "fit")
            >>> bar.position(short=True)  # a plain trainer has no stages
            'fit'
        """
        state = getattr(self.trainer, "sequence", None)
        if not isinstance(state, SequenceState):  # the bar also works with a plain trainer
            return str(self.trainer.state.fn or "fit")
        stage, forecast = state.stage, state.forecast
        parts = [f"stage {stage.index}/{len(state.plan)} {stage.name}", state.phase]
        parts.append(self._detail(state))
        if forecast is not None and forecast.current == (stage.index, state.phase):
            parts.append(forecast.remaining(self._pace.running()).text(short=short))
        return visible(" | ".join(filter(None, parts)))

    def _detail(self, state: SequenceState) -> str:
        """Return the epoch of the training, or the task that an evaluation has reached."""
        if not self.trainer.testing:
            epochs = state.data.epochs(state.stage.tasks)
            ended = epochs - self._epochs_left
            return f"epoch {min(ended + 1, epochs)}/{epochs}"
        tasks = list(state.data.pending)
        return tasks[self._loader] if self._loader < len(tasks) else ""

    @property
    def _epochs_left(self) -> int:
        """Epochs of the stage that have not ended; Lightning's counter never starts again."""
        return (self.trainer.max_epochs or 0) - self.trainer.current_epoch

    def _trained(self, batches: int) -> float:
        """Return the share of the stage that is trained after some batches of the epoch."""
        state, of_epoch = getattr(self.trainer, "sequence", None), self.trainer.num_training_batches
        if not isinstance(state, SequenceState) or not of_epoch:
            return 0.0
        epochs = state.data.epochs(state.stage.tasks)
        return (epochs - self._epochs_left + batches / of_epoch) / epochs

    def _renew(self, *, begins: bool = False) -> None:
        """Show the position if it is time to do so.

        Args:
            begins: Whether an epoch or a task begins.
        """
        due = time.monotonic() - self._shown >= self.interval
        if due or (begins and self.shows_beginnings):
            self._shown = time.monotonic()
            self.show()

    # -- Lightning's hooks -----------------------------------------------------------------

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the stage and its epoch instead of Lightning's counter of epochs."""
        super().on_train_epoch_start(trainer, pl_module)
        self._renew(begins=True)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the measurement before the first batch, which may be in the middle of an epoch."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if not self._pace.started:
            self._pace.start(self._trained(batch_idx))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the share of the stage that is trained."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._pace.reach(self._trained(batch_idx + 1))
        self._renew()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the measurement of a pass over the test samples."""
        super().on_test_start(trainer, pl_module)
        self._batches = 0
        self._pace.start(0.0)

    def on_test_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Show the task whose samples begin."""
        super().on_test_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)
        if batch_idx == 0:
            self._loader = dataloader_idx
            self._renew(begins=True)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Note the share of the samples that are answered."""
        super().on_test_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        self._batches += 1
        total = sum(trainer.num_test_batches)
        self._pace.reach(self._batches / total if total else 0.0)
        self._renew()

    def get_metrics(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the metrics to show, without the version number of the logger."""
        metrics: dict[str, Any] = dict(super().get_metrics(*args, **kwargs))
        metrics.pop("v_num", None)
        return metrics
