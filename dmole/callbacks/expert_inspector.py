"""Shows in TensorBoard and as pictures which experts exist, which are used, and what they reach."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from dmole.callbacks.base import ContinualCallback, parts
from dmole.callbacks.evaluation_matrix import EvaluationMatrix
from dmole.callbacks.expert_allocation import ExpertAllocation
from dmole.report import figures
from dmole.routing import AutoencoderRouter

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dmole.module import ContinualModule
    from dmole.trainer import ContinualTrainer


class ExpertInspector(ContinualCallback):
    """Logs figures after each stage and the speed of training; writes ``figures/*.png``.

    Scores, learning rates and factors are scalars; matrix, allocation, activation of experts and
    autoencoder losses are figures under the same names as the files.
    """

    def __init__(self) -> None:
        self._started = 0.0

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the watch of one step and log each module's effective learning rate."""
        self._started = time.perf_counter()
        _, module, _ = parts(trainer, pl_module)
        for group in trainer.optimizers[0].param_groups:
            rate = group["lr"] * module.update_scale.get(group["name"], 1.0)
            module.log(f"learning_rate/{group['name']}", rate, batch_size=len(batch))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the samples and log the speed."""
        sequence, module, _ = parts(trainer, pl_module)
        size = len(batch) * trainer.world_size
        sequence.samples_trained += size
        seconds = time.perf_counter() - self._started
        module.log("train/samples_per_second", size / seconds, batch_size=len(batch))

    def on_evaluation_end(self, trainer: ContinualTrainer, module: ContinualModule) -> None:
        """Log the new row of the matrix and draw all figures again."""
        if not trainer.is_global_zero:
            return
        stage, names = trainer.current_stage.index, trainer.data.task_names
        table = _find(trainer, EvaluationMatrix)
        for name, value in zip(names, table.matrix[stage], strict=True):
            for logger in trainer.loggers:
                logger.log_metrics({f"score/{name}": float(value)}, step=stage)
        rows = slice(0, stage + 1)
        tasks_of = [[names.index(task) for task in s.tasks] for s in trainer.learned()]
        self._show(
            trainer,
            "evaluation_matrix",
            figures.matrix_heatmap(table.matrix[rows], names, "Score after each stage", tasks_of),
        )
        if stage:
            self._show_experts(trainer, module, table)

    def _show_experts(
        self, trainer: ContinualTrainer, module: ContinualModule, table: EvaluationMatrix
    ) -> None:
        stage = trainer.current_stage.index
        rows = _find(trainer, ExpertAllocation).rows()
        if rows:
            self._show(
                trainer, "allocation", figures.allocation_heatmap(rows, "Layers that got experts")
            )
        counts: dict[str, dict[str, int]] = defaultdict(dict)
        for at, task, gate_set, count in table.routing:
            if at == stage:
                counts[task][gate_set] = count
        self._show(
            trainer,
            "expert_activation",
            figures.activation_heatmap(counts, f"Experts used, stage {stage}"),
        )
        expert, router = trainer.current_stage.expert, module.router
        if expert in table.losses and isinstance(router, AutoencoderRouter):
            by_task = table.losses[expert]
            own_first = {task: by_task[task] for task in sorted(by_task, key=lambda t: t != expert)}
            title = f"Test samples under the autoencoder of {expert}"
            figure = figures.loss_distribution(own_first, router.threshold(expert), title)
            self._show(trainer, f"autoencoder_losses_{expert}", figure)

    def _show(self, trainer: ContinualTrainer, name: str, figure: Figure) -> None:
        figures.save_figure(figure, trainer.run_dir / "figures" / f"{name}.png")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                board = logger.experiment
                board.add_figure(name, figure, trainer.current_stage.index, close=False)


def _find(trainer: ContinualTrainer, kind: type[Any]) -> Any:
    return next(
        callback for callback in trainer.continual_callbacks() if isinstance(callback, kind)
    )
