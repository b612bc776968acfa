"""Logs scores to TensorBoard, and at the end figures of scores and experts, also as files."""

from __future__ import annotations

import functools
import math
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image

from dmole.callbacks.base import ContinualCallback
from dmole.callbacks.evaluation_matrix import EvaluationMatrix
from dmole.callbacks.expert_allocation import ExpertAllocation
from dmole.report import figures
from dmole.routing import AutoencoderRouter
from dmole.run.board import RunBoard
from dmole.run.run_files import RunFile
from dmole.storage.files import errors_naming

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from matplotlib.figure import Figure
    from torch.optim import Optimizer

    from dmole.module import ContinualModule
    from dmole.run.state import SequenceState


class ExpertInspector(ContinualCallback):
    """Logs scores after each stage and the training speed; draws ``figures/*.png`` at the end.

    Scores, learning rates and factors are scalars. Matrix, allocation, activation of experts and
    autoencoder losses are figures with the names of their files. They show the whole run, so they
    are drawn once, and their size has a limit that does not depend on the number of tasks.
    """

    def __init__(self) -> None:
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
        """Log the new row of the matrix."""
        if not state.is_global_zero:
            return
        stage, table = state.stage.index, state.callback_of(EvaluationMatrix)
        row = zip(state.data.column_names, table.matrix[stage], strict=True)
        scores = {f"score/{name}": float(value) for name, value in row if not np.isnan(value)}
        for logger in state.trainer.loggers:
            for name, value in scores.items():
                logger.log_metrics({name: value}, step=stage)

    def on_sequence_end(self, state: SequenceState, module: ContinualModule) -> None:
        """Draw all figures, which show the whole run."""
        table = state.callback_of(EvaluationMatrix)
        if not state.is_global_zero or not table.evaluated:
            return
        self._drawn = {f"figures/{name}.png": draw for name, draw in _drawings(state, module)}
        state.put(*self.run_files(state, module))
        for path in self._drawn:
            for logger in state.trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    _log_picture(logger, state.run_dir / path, table.evaluated[-1])

    def run_files(self, state: SequenceState, module: ContinualModule) -> Iterator[RunFile]:
        """Return the figures, once they are drawn."""
        for name, draw in self._drawn.items():
            yield RunFile(name, functools.partial(_write_figure, name, draw))


def _write_figure(name: str, draw: Callable[[], Figure], run: Path) -> None:
    figures.save_figure(draw(), run / name)


def _log_picture(logger: TensorBoardLogger, path: Path, step: int) -> None:
    """Log the picture of a file under the name of the file."""
    with Image.open(path) as picture:
        if isinstance(logger, RunBoard):
            logger.log_picture(path.stem, path.read_bytes(), picture.size, step)
            return
        pixels = np.asarray(picture.convert("RGB"))
    with errors_naming(Path(logger.log_dir) / "events.out.tfevents"):
        logger.experiment.add_image(path.stem, pixels, step, dataformats="HWC")


def _drawings(
    state: SequenceState, module: ContinualModule
) -> Iterator[tuple[str, Callable[[], Figure]]]:
    """Yield the figures of a run that has something to show in them: names and what draws them."""
    table, names = state.callback_of(EvaluationMatrix), state.data.column_names
    last = table.evaluated[-1]
    matrix, tasks_of = table.matrix[: last + 1].copy(), state.learned_columns()
    limit = state.data.eval_limit
    title = "Score after each stage" + (f" (eval_limit {limit})" if limit else "")
    yield (
        "evaluation_matrix",
        lambda: figures.matrix_heatmap(matrix, names, title, tasks_of),
    )
    rows = state.callback_of(ExpertAllocation).rows()
    if rows:
        yield "allocation", lambda: figures.allocation_heatmap(rows, "Units that hold experts")
    counts: dict[str, dict[str, int]] = defaultdict(dict)
    for at, task, gate_set, count in table.routing:
        if at == last:
            counts[task][gate_set] = count
    if last:
        used = f"Experts used, stage {last}"
        yield "expert_activation", lambda: figures.activation_heatmap(counts, used)
    ratios = _ratios(state, module, table)
    if ratios:
        told = "Test samples under each autoencoder"
        yield "autoencoder_losses", lambda: figures.acceptance_figure(ratios, told)


def _ratios(
    state: SequenceState, module: ContinualModule, table: EvaluationMatrix
) -> dict[str, tuple[list[float], list[float]]]:
    """Return the losses of own and other test samples by the threshold of each expert."""
    router = getattr(module.router, "router", module.router)  # inside CommonExpertRouter
    if not isinstance(router, AutoencoderRouter):
        return {}
    own = {stage.expert: stage.tasks for stage in state.plan}
    found = {}
    for expert in (name for name in table.losses if name in router.fitted):  # not the common one
        by_task, threshold = table.losses[expert], router.threshold(expert)
        if not 0.0 < threshold < math.inf:
            continue  # scaled to accept nothing, or everything
        parts: tuple[list[float], list[float]] = ([], [])
        for task, losses in by_task.items():
            parts[task not in own.get(expert, ())].extend(loss / threshold for loss in losses)
        found[expert] = parts
    return found
