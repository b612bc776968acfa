"""Weights & Biases."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from dmole.tracking.results import PROJECT
from dmole.tracking.tracker import Tracker

if TYPE_CHECKING:
    from lightning.pytorch.loggers import WandbLogger

    from dmole.tracking.results import RunResults, TrackedRun


class WandbTracker(Tracker):
    """Reports to W&B, or to ``wandb/`` of the working directory with ``WANDB_MODE=offline``.

    The id of the run is that of its checkpoints, so that a resumed run continues it.
    """

    package = "wandb"

    def start(self, run: TrackedRun) -> WandbLogger:
        """Return the logger of a run."""
        from lightning.pytorch.loggers import WandbLogger

        project = os.environ.get("WANDB_PROJECT", PROJECT)
        folder = os.environ.get("WANDB_DIR", ".")  # a folder that is given replaces it
        self._logger = WandbLogger(name=run.name, project=project, save_dir=folder, id=run.id)
        self._logger.log_hyperparams(run.settings)
        return self._logger

    def publish(self, results: RunResults) -> None:
        """Add summary, tables and pictures to the run, and its files as an artifact."""
        import wandb

        run = self._logger.experiment
        run.summary.update(results.figures)
        for name, table in results.tables.items():
            self._logger.log_table(f"tables/{name}", columns=table.columns, data=table.rows)
        for path in results.pictures:
            self._logger.log_image(f"figures/{path.stem}", [str(path)], step=results.step)
        artifact = wandb.Artifact(f"run-{run.id}", type="run")
        for path in results.files:
            artifact.add_file(str(path), name=str(path.relative_to(results.folder)))
        run.log_artifact(artifact)
        run.finish()
