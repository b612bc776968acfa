"""What a tracker of experiments does for a run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

    from dmole.tracking.results import RunResults, TrackedRun


class Tracker(ABC):
    """A tracker: it makes Lightning's logger for a run, and takes the results at the end.

    Only the first process of a run has one. Where files go, and whether anything is sent, is
    decided by the tracker's own environment variables.

    Attributes:
        package: Package that must be installed.
    """

    package: ClassVar[str]

    @abstractmethod
    def start(self, run: TrackedRun) -> Logger:
        """Return the logger of a run; a resumed run continues its earlier one.

        Raises:
            Exception: Any error of the tracker, such as a server that does not answer.
        """

    @abstractmethod
    def publish(self, results: RunResults) -> None:
        """Hand over the results of the run, and end it.

        Raises:
            Exception: Any error of the tracker.
        """
