"""The TensorBoard events of a run: one file, which a resumed run continues.

A checkpoint holds the size of the file at its time. A resumed run cuts off what was logged after
it, so no step occurs twice, and a record that a killed process has left unfinished.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from dmole.storage.files import errors_naming

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Self

    from dmole.run.events import ContinuedWriter

log = logging.getLogger("dmole")

BINS = 30
"""Bins of a histogram, at most."""

_PREFIX = "events.out.tfevents"
_NAME = re.compile(re.escape(_PREFIX) + r"\.[\w.-]{1,200}", re.ASCII)


@dataclass(frozen=True)
class BoardPosition:
    """How far a run has logged.

    Args:
        file: Name of the file in the run folder.
        size: Its size in bytes.
        step: Step of training that has ended, but that Lightning logs only after the checkpoint;
            None between two phases.
    """

    file: str
    size: int
    step: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a checkpoint."""
        return {"file": self.file, "size": self.size, "step": self.step}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Return the position of a checkpoint.

        Raises:
            ValueError: If it names no file of events, or has no size.
        """
        name, size, step = values["file"], values["size"], values.get("step")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(f"{name!r:.80} is no file of TensorBoard events")
        if type(size) is not int or size < 0:
            raise ValueError(f"the size of {name} is {size!r:.80}")
        if step is not None and type(step) is not int:
            raise ValueError(f"the step of {name} is {step!r:.80}")
        return cls(name, size, step)


class RunBoard(TensorBoardLogger):
    """TensorBoard in one file, without a file of hyperparameters, since there is ``config.yaml``.

    Lightning closes it after every fit and test; the next event opens the file again.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._events: Path | None = None

    @property
    @rank_zero_experiment
    def experiment(self) -> ContinuedWriter:
        """Torch's interface to TensorBoard."""
        if self._experiment is None:
            from dmole.run.events import ContinuedWriter  # takes half a second to import

            self._experiment = ContinuedWriter(self._file())
        return cast("ContinuedWriter", self._experiment)

    def _file(self) -> Path:
        """Return the file, which is named once and made by the first event."""
        if self._events is None:
            host = re.sub(r"[^\w.-]", "_", socket.gethostname())
            name = f"{_PREFIX}.{int(time.time()):010}.{host}.{os.getpid()}.0"
            self._events = Path(self.log_dir) / name
        return self._events

    @rank_zero_only
    def resume(self, position: BoardPosition) -> None:
        """Continue the file of a checkpoint from where it was then.

        A file that is missing, or that is a link, is left alone with a warning; a new one begins.
        """
        from dmole.run.events import cut

        path = Path(self.log_dir) / position.file
        if not position.size and not os.path.lexists(path):
            self._events = path
            return
        if path.is_symlink() or not path.is_file():
            log.warning("%s: events of TensorBoard were deleted; they are lost", self.log_dir)
            return
        with errors_naming(path):
            cut(path, position.size, position.step)
        self._events = path

    @rank_zero_only
    def position(self, step: int | None = None) -> BoardPosition | None:
        """Return how far the run has logged; None on other ranks than the first.

        Args:
            step: See `BoardPosition`.
        """
        self.save()
        file = self._file()
        return BoardPosition(file.name, file.stat().st_size if file.is_file() else 0, step)

    @rank_zero_only
    def check(self) -> None:
        """Warn if the file was deleted; the next event begins it again."""
        if self._events is not None and self._experiment is not None and not self._events.exists():
            log.warning("%s: events of TensorBoard were deleted; they are lost", self.log_dir)
            self.finalize("deleted")

    @rank_zero_only
    def log_picture(self, name: str, png: bytes, size: tuple[int, int], step: int) -> None:
        """Write a picture as it is in its file, without drawing it again.

        Args:
            name: Tag of the picture.
            png: Content of the file.
            size: Width and height in pixels.
            step: Step in TensorBoard.
        """
        with self.naming():
            self.experiment.add_png(name, png, size, step)

    @rank_zero_only
    def log_histogram(self, name: str, values: Sequence[float], step: int) -> None:
        """Write a histogram of finite values with `BINS` bins."""
        with self.naming():
            self.experiment.add_histogram(name, np.asarray(values), step, bins=BINS)

    @rank_zero_only
    def log_text(self, name: str, markdown: str, step: int) -> None:
        """Write a text, which TensorBoard shows as Markdown."""
        with self.naming():
            self.experiment.add_text(name, markdown, step)

    @rank_zero_only
    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        """Write metrics; an error of the disk names the folder of the events."""
        with self.naming():
            super().log_metrics(*args, **kwargs)

    @rank_zero_only
    def save(self) -> None:
        """Write buffered events."""
        if self._experiment is not None:  # else there are none
            with self.naming():
                self._experiment.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write buffered events and close the file."""
        if self._experiment is not None:
            with self.naming():
                self._experiment.close()

    def naming(self) -> AbstractContextManager[None]:
        """Return a context that adds the name of the event files to errors of the disk."""
        return errors_naming(Path(self.log_dir) / _PREFIX)
