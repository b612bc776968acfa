"""Starts the trackers that a run reports to, and hands them its results."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from typing import TYPE_CHECKING

from dmole.messages import excerpt, one_line, shortened
from dmole.run.hparams import run_hyperparameters
from dmole.tracking.mlflow_tracker import MLflowTracker
from dmole.tracking.results import TrackedRun, results_of
from dmole.tracking.swanlab_tracker import SwanLabTracker
from dmole.tracking.trackio_tracker import TrackioTracker
from dmole.tracking.wandb_tracker import WandbTracker

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dmole.module import ContinualModule
    from dmole.run.state import SequenceState
    from dmole.tracking.tracker import Tracker

log = logging.getLogger("dmole")

TENSORBOARD = "tensorboard"
"""Name of the events file in the run folder, which needs no tracker."""

TRACKERS: dict[str, type[Tracker]] = {
    "wandb": WandbTracker,
    "mlflow": MLflowTracker,
    "swanlab": SwanLabTracker,
    "trackio": TrackioTracker,
}
"""Trackers by the name in ``trainer.report_to``."""


def check_names(names: Sequence[str]) -> list[str]:
    """Return the names that a run reports to, each once.

    Raises:
        ValueError: If a name is unknown, or its package is not installed.
    """
    for name in names:
        if name not in (TENSORBOARD, *TRACKERS):
            known = ", ".join((TENSORBOARD, *TRACKERS))
            raise ValueError(f"trainer.report_to names {excerpt(name)}; there are {known}")
        if name != TENSORBOARD and find_spec(TRACKERS[name].package) is None:
            raise ValueError(
                f"trainer.report_to names {name}, which is not installed: "
                f"pip install 'dmole[{name}]'"
            )
    return list(dict.fromkeys(names))


class Tracking:
    """The trackers of one run, on the first process only.

    Args:
        names: Names of `TRACKERS`, and ``tensorboard``; None is TensorBoard alone.

    Raises:
        ValueError: See `check_names`.
    """

    def __init__(self, names: Sequence[str] | None) -> None:
        self._names = check_names([TENSORBOARD] if names is None else names)
        self._started: dict[str, Tracker] = {}

    @property
    def uses_tensorboard(self) -> bool:
        """Whether the run writes events for TensorBoard."""
        return TENSORBOARD in self._names

    def start(self, state: SequenceState, module: ContinualModule) -> None:
        """Add the loggers of the trackers to those of the trainer.

        Raises:
            ValueError: If a tracker fails; names it.
        """
        names = [name for name in self._names if name != TENSORBOARD]
        if not names or not state.is_global_zero:
            return
        run = TrackedRun.of(state, run_hyperparameters(state, module))
        for name in names:
            tracker = TRACKERS[name]()
            try:
                logger = tracker.start(run)
            except Exception as error:  # each has errors of its own
                text = shortened(one_line(error))
                raise ValueError(f"trainer.report_to: {name} did not start: {text}") from error
            state.trainer.loggers = [*state.trainer.loggers, logger]
            self._started[name] = tracker

    def finish(self, state: SequenceState) -> None:
        """Hand the results of a finished run to the trackers; the run is whole if one fails."""
        for name, tracker in self._started.items():
            try:
                tracker.publish(results_of(state))
            except Exception as error:  # the results are in the run folder
                text = shortened(one_line(error))
                log.warning("trainer.report_to: %s did not take all results: %s", name, text)
