"""SwanLab."""

from __future__ import annotations

import glob
import os
from typing import TYPE_CHECKING

from dmole.tracking.results import PROJECT
from dmole.tracking.tracker import Tracker

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

    from dmole.tracking.results import RunResults, TrackedRun


class SwanLabTracker(Tracker):
    """Reports to SwanLab, or to ``swanlog/`` of the working directory with ``SWANLAB_MODE=local``.

    A resumed run continues its earlier one in the cloud, and begins another one locally.
    """

    package = "swanlab"

    def start(self, run: TrackedRun) -> Logger:
        """Return the logger of a run."""
        from swanlab.integration.pytorch_lightning import SwanLabLogger

        project = os.environ.get("SWANLAB_PROJ_NAME", PROJECT)
        options = {"project": project, "experiment_name": run.name, "id": run.id}
        logger: Logger = SwanLabLogger(**options, resume="allow")
        logger.log_hyperparams(run.settings)
        self._logger = logger
        return logger

    def publish(self, results: RunResults) -> None:
        """Add final metrics, tables and pictures to the run, and save its files."""
        import swanlab

        self._logger.log_metrics(results.figures, results.step)
        tables = {
            f"tables/{name}": swanlab.echarts.Table().add(table.columns, table.rows)
            for name, table in results.tables.items()
        }
        pictures = {f"figures/{path.stem}": swanlab.Image(str(path)) for path in results.pictures}
        swanlab.log(tables | pictures, step=results.step)
        for path in results.files:  # below the name of the folder, since SwanLab has a config.yaml
            pattern = glob.escape(str(path))
            swanlab.save(pattern, base_path=str(results.folder.parent), policy="now")
        swanlab.finish()
