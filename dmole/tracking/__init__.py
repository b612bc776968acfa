"""Trackers of experiments, which a run reports to by name."""

from dmole.tracking.results import RunResults, TrackedRun, results_of
from dmole.tracking.tracker import Tracker
from dmole.tracking.tracking import TENSORBOARD, TRACKERS, Tracking, check_names

__all__ = [
    "TENSORBOARD",
    "TRACKERS",
    "RunResults",
    "TrackedRun",
    "Tracker",
    "Tracking",
    "check_names",
    "results_of",
]
