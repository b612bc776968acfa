"""MLflow."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from dmole.tracking.results import PROJECT
from dmole.tracking.tracker import Tracker

if TYPE_CHECKING:
    from lightning.pytorch.loggers import MLFlowLogger
    from mlflow import MlflowClient

    from dmole.tracking.results import RunResults, TrackedRun

TAG = "dmole.run"
"""Tag by which a resumed run finds its earlier one."""


class MLflowTracker(Tracker):
    """Reports to the server or store of ``MLFLOW_TRACKING_URI``, or to MLflow's default store."""

    package = "mlflow"

    def start(self, run: TrackedRun) -> MLFlowLogger:
        """Return the logger of a run."""
        import mlflow
        from lightning.pytorch.loggers import MLFlowLogger

        uri = mlflow.get_tracking_uri()
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        self._logger = MLFlowLogger(
            experiment_name=experiment,
            run_name=run.name,
            tracking_uri=uri,
            tags={TAG: run.id},
            run_id=_earlier_run(mlflow.MlflowClient(uri), experiment, run.id),
        )
        self._logger.log_hyperparams(run.settings)
        return self._logger

    def publish(self, results: RunResults) -> None:
        """Add final metrics and all files, which hold the tables and the pictures."""
        self._logger.log_metrics(results.figures, results.step)
        for path in results.files:
            folder = path.parent.relative_to(results.folder)
            where = None if folder.name == "" else str(folder)
            self._logger.experiment.log_artifact(self._logger.run_id, str(path), where)
        self._logger.finalize("success")


def _earlier_run(client: MlflowClient, experiment: str, run: str) -> str | None:
    """Return MLflow's id of the run with a tag, None if there is none."""
    found = client.get_experiment_by_name(experiment)
    if found is None or found.lifecycle_stage == "deleted":
        return None
    runs = client.search_runs([found.experiment_id], f"tags.`{TAG}` = '{run}'", max_results=1)
    return str(runs[0].info.run_id) if runs else None
