"""Logs scores to TensorBoard, and at the end figures of scores and experts, also as files."""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image

from dmole.callbacks.base import ContinualCallback
from dmole.callbacks.evaluation_matrix import EvaluationMatrix
from dmole.callbacks.run_figures import drawn_stages, final_drawings, stage_drawings
from dmole.callbacks.stage_records import activation_scalars, case_texts, stage_histograms
from dmole.report.style import FORMATS, preview, save_figure
from dmole.run.board import RunBoard
from dmole.run.hparams import final_figures, run_hyperparameters
from dmole.run.run_files import RunFile
from dmole.storage.files import errors_naming

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from matplotlib.figure import Figure
    from torch.optim import Optimizer

    from dmole.module import ContinualModule
    from dmole.run.state import SequenceState


class ExpertInspector(ContinualCallback):
    """Logs a run to TensorBoard and other loggers, and draws the files of ``figures/`` at the end.

    After each stage all loggers receive scores and shares of activation, in training learning rates
    and speed. TensorBoard also receives histograms of norms and gates, and after some stages the
    figures in low resolution and the answers to a few samples; at the end settings and final
    figures, by which runs are compared, and all figures. `dmole.callbacks.run_figures` and
    `dmole.callbacks.stage_records` say what they show.

    Args:
        stage_figures: Largest number of stages after which figures are drawn for TensorBoard,
            evenly spaced, since drawing takes longer than a short stage; 0 for none.

    Raises:
        ValueError: If ``stage_figures`` is negative.
    """

    def __init__(self, stage_figures: int = 10) -> None:
        if stage_figures < 0:
            raise ValueError(f"stage_figures must be at least 0, got {stage_figures}")
        self.stage_figures = stage_figures
        self._started = 0.0
        self._drawn: dict[str, Callable[[], Figure]] = {}

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start timing one step."""
        self._started = time.perf_counter()

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Log the learning rate of each modality, as scaled by the curriculum."""
        for group in optimizer.param_groups:
            pl_module.log(f"learning_rate/{group['name']}", group["lr"], batch_size=1)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the training speed in samples per second over all ranks."""
        seconds = time.perf_counter() - self._started
        speed = len(batch) * trainer.world_size / seconds
        pl_module.log("train/samples_per_second", speed, batch_size=len(batch))

    def on_evaluation_end(self, state: SequenceState, module: ContinualModule) -> None:
        """Log the new row of the matrix, and what TensorBoard shows of the stage."""
        if not state.is_global_zero:
            return
        stage, table = state.stage.index, state.callback_of(EvaluationMatrix)
        if stage not in table.evaluated:
            return
        row = zip(state.data.column_names, table.matrix[stage], strict=True)
        values = {f"score/{name}": float(value) for name, value in row if not np.isnan(value)}
        values |= activation_scalars(state, module)
        for logger in state.trainer.loggers:
            logger.log_metrics(values, step=stage)
        for board in _boards(state):
            for name, numbers in stage_histograms(state, module).items():
                board.log_histogram(name, numbers, stage)
            if stage in drawn_stages(len(state.plan), self.stage_figures):
                _log_stage(board, state)

    def on_sequence_end(self, state: SequenceState, module: ContinualModule) -> None:
        """Draw all figures, which show the whole run, and log its settings and final figures."""
        table = state.callback_of(EvaluationMatrix)
        if not state.is_global_zero or not table.evaluated:
            return
        last = table.evaluated[-1]
        for board in _boards(state):
            results = final_figures(table.metrics(state, module))
            board.log_hyperparams(run_hyperparameters(state, module), results, last)
        self._drawn = dict(final_drawings(state, module))
        state.put(*self.run_files(state, module))
        for name in self._drawn:
            for logger in state.trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    _log_picture(logger, state.run_dir / f"figures/{name}.png", last)

    def run_files(self, state: SequenceState, module: ContinualModule) -> Iterator[RunFile]:
        """Return the figures, once they are drawn."""
        for name, draw in self._drawn.items():
            for ending in FORMATS:
                file = f"figures/{name}{ending}"
                yield RunFile(file, functools.partial(_write_figure, file, draw))


def _boards(state: SequenceState) -> list[RunBoard]:
    """Return the loggers that write TensorBoard's file of the run."""
    return [logger for logger in state.trainer.loggers if isinstance(logger, RunBoard)]


def _log_stage(board: RunBoard, state: SequenceState) -> None:
    """Draw the figures of a stage for TensorBoard, and log the answers to some samples."""
    stage = state.stage.index
    for name, text in case_texts(state).items():
        board.log_text(name, text, stage)
    if stage < len(state.plan):  # else they are drawn with all others
        for name, draw in stage_drawings(state):
            board.log_picture(name, *preview(draw()), stage)


def _write_figure(name: str, draw: Callable[[], Figure], run: Path) -> None:
    save_figure(draw(), run / name)


def _log_picture(logger: TensorBoardLogger, path: Path, step: int) -> None:
    """Log the picture of a file under the name of the file."""
    with Image.open(path) as picture:
        if isinstance(logger, RunBoard):
            logger.log_picture(path.stem, path.read_bytes(), picture.size, step)
            return
        pixels = np.asarray(picture.convert("RGB"))
    with errors_naming(Path(logger.log_dir) / "events.out.tfevents"):
        logger.experiment.add_image(path.stem, pixels, step, dataformats="HWC")
