"""Displays of progress: a bar on a terminal, else a line in the log now and then."""

from __future__ import annotations

import logging
import sys
from importlib.util import find_spec
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar, TQDMProgressBar

from dmole.callbacks.progress import StageProgress

log = logging.getLogger("dmole")


class StageProgressBar(StageProgress, TQDMProgressBar):
    """A bar of tqdm with stage, task, phase, epoch and remaining time before it.

    It replaces tqdm's remaining time, which is that of an epoch.

    Args:
        refresh_rate: Batches between updates; 0 hides the bar.
        leave: Keep finished bars on the screen.
    """

    BAR_FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt}{postfix}"

    def __init__(self, refresh_rate: int = 5, leave: bool = False) -> None:
        super().__init__(refresh_rate=refresh_rate, leave=leave)

    def show(self) -> None:
        """Write the position before the bar."""
        bar = self.test_progress_bar if self.trainer.testing else self.train_progress_bar
        bar.set_description(self.position(short=True))

    @property
    def train_description(self) -> str:
        """Text before the training bar."""
        return self.position(short=True)

    @property
    def test_description(self) -> str:
        """Text before the evaluation bar."""
        return self.position(short=True)


class RichStageProgressBar(StageProgress, RichProgressBar):
    """A bar of Rich with stage, task, phase, epoch and remaining time before it.

    Args:
        refresh_rate: Updates in a second; 0 hides the bar.
        leave: Keep finished bars on the screen.

    Raises:
        ModuleNotFoundError: If Rich is not installed.
    """

    def __init__(self, refresh_rate: int = 4, leave: bool = False) -> None:
        super().__init__(refresh_rate=refresh_rate, leave=leave)

    def show(self) -> None:
        """Write the position before the bar."""
        testing = self.trainer.testing
        bar = self.test_progress_bar_id if testing else self.train_progress_bar_id
        if self.progress is not None and bar is not None:
            self.progress.update(bar, description=self.test_description)

    def configure_columns(self, trainer: Trainer) -> list[Any]:
        """Return the columns without Rich's time and speed, which are those of an epoch."""
        text, bar, batches, *_ = super().configure_columns(trainer)
        return [text, bar, batches]

    @property
    def test_description(self) -> str:
        """Text before the bar; what Rich would read as markup in the name of a task is escaped."""
        from rich.markup import escape

        return escape(self.position(short=True))


class StageProgressLines(StageProgress):
    """A line in the log every half minute, where the output is no terminal.

    The trainer logs the start of each phase.
    """

    interval = 30.0
    shows_beginnings = False
    _enabled = True

    def enable(self) -> None:
        """Write lines."""
        self._enabled = True

    def disable(self) -> None:
        """Write no lines, as Lightning demands of all processes but the first."""
        self._enabled = False

    def show(self) -> None:
        """Log the position."""
        if self._enabled:
            log.info(self.position(short=False))


def standard_progress() -> ProgressBar:
    """Return the display that suits the output: a bar on a terminal or in a notebook, else lines.

    The bar is that of Rich where Rich is installed.
    """
    if not (sys.stdout.isatty() or hasattr(sys, "ps1")):
        return StageProgressLines()
    return RichStageProgressBar() if find_spec("rich") else StageProgressBar()
