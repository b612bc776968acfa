"""Logs figures of the experts to TensorBoard and files: allocation, use and scores."""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from dmole.callbacks.base import ContinualCallback
from dmole.callbacks.evaluation_matrix import EvaluationMatrix
from dmole.callbacks.expert_allocation import ExpertAllocation
from dmole.report import figures
from dmole.routing import AutoencoderRouter
from dmole.run.run_files import RunFile
from dmole.storage.files import atomic_path, check_name, errors_naming

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.figure import Figure
    from torch.optim import Optimizer

    from dmole.module import ContinualModule
    from dmole.run.state import SequenceState


class ExpertInspector(ContinualCallback):
    """Logs figures after each stage and the training speed; writes ``figures/*.png``.

    Scores, learning rates and factors are scalars. Matrix, allocation, activation of experts and
    autoencoder losses are figures with the names of their files.
    """

    def __init__(self) -> None:
        self._started = 0.0
        self._pictures: dict[str, bytes] = {}

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
        """Log the new row of the matrix and draw all figures again."""
        if not state.is_global_zero:
            return
        stage, names = state.stage.index, state.data.column_names
        table = state.callback_of(EvaluationMatrix)
        for name, value in zip(names, table.matrix[stage], strict=True):
            if np.isnan(value):
                continue
            for logger in state.trainer.loggers:
                logger.log_metrics({f"score/{name}": float(value)}, step=stage)
        rows = slice(0, stage + 1)
        tasks_of = state.learned_columns()
        self._show(
            state,
            "evaluation_matrix",
            figures.matrix_heatmap(table.matrix[rows], names, "Score after each stage", tasks_of),
        )
        if stage:
            self._show_experts(state, module, table)

    def _show_experts(
        self, state: SequenceState, module: ContinualModule, table: EvaluationMatrix
    ) -> None:
        stage = state.stage.index
        rows = state.callback_of(ExpertAllocation).rows()
        if rows:
            self._show(
                state, "allocation", figures.allocation_heatmap(rows, "Units that hold experts")
            )
        counts: dict[str, dict[str, int]] = defaultdict(dict)
        for at, task, gate_set, count in table.routing:
            if at == stage:
                counts[task][gate_set] = count
        self._show(
            state,
            "expert_activation",
            figures.activation_heatmap(counts, f"Experts used, stage {stage}"),
        )
        expert, router = state.stage.expert, module.router
        if expert in table.losses and isinstance(router, AutoencoderRouter):
            by_task = table.losses[expert]
            expert_first = {t: by_task[t] for t in sorted(by_task, key=lambda t: t != expert)}
            title = f"Test samples under the autoencoder of {expert}"
            figure = figures.loss_distribution(expert_first, router.threshold(expert), title)
            self._show(state, f"autoencoder_losses_{expert}", figure)

    def run_files(self, state: SequenceState, module: ContinualModule) -> Iterator[RunFile]:
        """Return the figures drawn so far."""
        for name, picture in self._pictures.items():
            yield RunFile(name, functools.partial(_write_picture, name, picture))

    def sequence_state_dict(self) -> dict[str, Any]:
        """Return the figures as tensors of their bytes, ``uint8``."""
        return {
            name: torch.from_numpy(np.frombuffer(picture, dtype=np.uint8).copy())
            for name, picture in self._pictures.items()
        }

    def load_sequence_state_dict(self, state: dict[str, Any]) -> None:
        """Load a saved state.

        Raises:
            ValueError: If it has a picture that is no file of ``figures``.
        """
        for name in state:
            figure = str(name).removeprefix("figures/").removesuffix(".png")
            if name != f"figures/{check_name(figure, 'the figure')}.png":
                raise ValueError(f"{name!r:.80} is no figure of a run")
        self._pictures = {name: picture.numpy().tobytes() for name, picture in state.items()}

    def _show(self, state: SequenceState, name: str, figure: Figure) -> None:
        path = f"figures/{name}.png"
        state.put(RunFile(path, lambda run: figures.save_figure(figure, run / path)))
        self._pictures[path] = (state.run_dir / path).read_bytes()
        for logger in state.trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                with errors_naming(Path(logger.log_dir) / "events.out.tfevents"):
                    logger.experiment.add_figure(name, figure, state.stage.index, close=False)


def _write_picture(name: str, picture: bytes, run: Path) -> None:
    with atomic_path(run / name) as temporary:
        temporary.write_bytes(picture)
