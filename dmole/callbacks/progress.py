"""A progress bar that shows the current stage, task and phase."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import TQDMProgressBar

from dmole.run.state import SequenceState


class StageProgressBar(TQDMProgressBar):
    """Shows stage, task and phase before Lightning's bar.

    Args:
        refresh_rate: Batches between updates; 0 hides the bar.
        leave: Keep finished bars on the screen.
    """

    def __init__(self, refresh_rate: int = 5, leave: bool = False) -> None:
        super().__init__(refresh_rate=refresh_rate, leave=leave)

    @property
    def train_description(self) -> str:
        """Text before the training bar."""
        return self._describe()

    @property
    def test_description(self) -> str:
        """Text before the evaluation bar."""
        return self._describe()

    def on_train_epoch_start(self, trainer: Any, *args: Any) -> None:
        """Show stage and phase in the bar of an epoch instead of the epoch number."""
        super().on_train_epoch_start(trainer, *args)
        self.train_progress_bar.set_description(self._describe())

    def _describe(self) -> str:
        state = getattr(self.trainer, "sequence", None)
        if not isinstance(state, SequenceState):  # the bar also works with a plain trainer
            return str(self.trainer.state.fn)
        return f"stage {state.stage.index}/{len(state.plan)} {state.stage.name} | {state.phase}"

    def get_metrics(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the metrics to show, without the version number of the logger."""
        metrics: dict[str, Any] = dict(super().get_metrics(*args, **kwargs))
        metrics.pop("v_num", None)
        return metrics
