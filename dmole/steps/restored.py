"""Names the checkpoint of a stage in errors that its content causes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from dmole.storage.reading import refusing


class RestoredState:
    """Tells errors of a restored state from errors of data and model, until the first step.

    Optimizers, schedulers and loops of other packages take any state from a checkpoint; a value of
    another type fails later, where it is used. The parts of a resume that use the state are
    enclosed by :meth:`enter` and :meth:`leave`.
    """

    def __init__(self) -> None:
        self._file: Path | None = None
        self._used = False

    @contextmanager
    def of(self, file: Path | None) -> Iterator[None]:
        """Raise an error of the restored state as one line that names its file.

        Args:
            file: The checkpoint that training resumes from; None if it starts.

        Raises:
            ValueError: If the body of the ``with`` statement fails where it uses the state.
        """
        self._file, self._used = file, False
        try:
            yield
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception:
            if self._file is None or not self._used:
                raise
            with refusing(self._file, "checkpoint"):
                raise
        finally:
            self._file, self._used = None, False

    def enter(self) -> None:
        """Begin a part of the training that uses the restored state."""
        self._used = self._file is not None

    def leave(self) -> None:
        """End the part that uses the restored state; after an error it is not called."""
        self._used = False

    def close(self) -> None:
        """End the last part: a step was made, so later errors have another cause."""
        self._file, self._used = None, False
