"""A progress bar that says which stage, task and phase is running."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import TQDMProgressBar

from dmole.run.state import SequenceState


class StageProgressBar(TQDMProgressBar):
    """Names stage, task and phase in front of Lightning's bar.

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
        """Start the bar of an epoch with stage and phase instead of the epoch's number."""
        super().on_train_epoch_start(trainer, *args)
        self.train_progress_bar.set_description(self._describe())

    def _describe(self) -> str:
        state = getattr(self.trainer, "sequence", None)
        if not isinstance(state, SequenceState):  # the bar works under a plain trainer, too
            return str(self.trainer.state.fn)
        return f"stage {state.stage.index}/{len(state.plan)} {state.stage.name} | {state.phase}"

    def get_metrics(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the shown figures without the logger's version number."""
        metrics: dict[str, Any] = dict(super().get_metrics(*args, **kwargs))
        metrics.pop("v_num", None)
        return metrics
