"""trackio, which has no logger for Lightning."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from dmole.tracking.results import PROJECT
from dmole.tracking.tracker import Tracker

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Mapping

    import trackio

    from dmole.tracking.results import RunResults, TrackedRun


class TrackioLogger(Logger):
    """Lightning's logger for trackio.

    Args:
        project: Name of the project.
        run: Name of the run; an earlier run of this name is continued.
    """

    def __init__(self, project: str, run: str) -> None:
        super().__init__()
        self._project, self._run_name = project, run
        self._settings: dict[str, Any] = {}
        self._run: trackio.Run | None = None

    @property
    def name(self) -> str:
        """The project."""
        return self._project

    @property
    def version(self) -> str:
        """Name of the run."""
        return self._run_name

    @property
    @rank_zero_experiment
    def experiment(self) -> trackio.Run:
        """The run of trackio, begun when it is first needed."""
        if self._run is None:
            import trackio

            names = {"project": self._project, "name": self._run_name, "resume": "allow"}
            self._run = trackio.init(**names, config=self._settings, embed=False)
        return self._run

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any) -> None:
        """Keep settings for the start of the run."""
        self._settings |= params if isinstance(params, dict) else vars(params)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics."""
        self.experiment.log(dict(metrics), step=step)


class TrackioTracker(Tracker):
    """Reports to ``~/.cache/huggingface/trackio``, ``TRACKIO_DIR`` or ``TRACKIO_SPACE_ID``."""

    package = "trackio"

    def start(self, run: TrackedRun) -> TrackioLogger:
        """Return the logger of a run."""
        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        self._logger = TrackioLogger(project, f"{run.name.replace('/', '-')}-{run.id[:8]}")
        self._logger.log_hyperparams(run.settings)
        _ = self._logger.experiment  # fails now or never
        return self._logger

    def publish(self, results: RunResults) -> None:
        """Add final metrics, tables and pictures to the run, and its files as an artifact."""
        import trackio

        run = self._logger.experiment
        content: dict[str, Any] = dict(results.figures)
        for name, table in results.tables.items():
            content[f"tables/{name}"] = trackio.Table(columns=table.columns, data=table.rows)
        for path in results.pictures:
            content[f"figures/{path.stem}"] = trackio.Image(str(path))
        run.log(content, step=results.step)
        artifact = trackio.Artifact(f"run-{self._logger.version}", type="run")
        for path in results.files:
            artifact.add_file(path, name=path.relative_to(results.folder).as_posix())
        run.log_artifact(artifact)
        run.finish()
