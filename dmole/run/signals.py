"""Requests to end a run: recorded when they arrive, met at the next safe point."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn, TypeVar

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

from dmole.distributed import max_over_ranks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import FrameType

    from lightning.pytorch.strategies import Strategy

T = TypeVar("T")

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""In the order of their weight: where ranks got different ones, the last counts."""


class Interrupted(Exception):  # noqa: N818 - a request that was met, not an error
    """A signal requested the end of the run, which saved its state and ended.

    Args:
        signum: The signal.
        message: Says where the run stands; empty on ranks that need not speak.
        exit_status: For the shell; by convention 128 plus the number of the signal.
    """

    def __init__(self, signum: int, message: str = "", exit_status: int | None = None) -> None:
        super().__init__(message)
        self.signum = signum
        self.exit_status = 128 + signum if exit_status is None else exit_status


class Interruption:
    """Records SIGTERM, SIGUSR1 and Ctrl-C; a Ctrl-C after that ends the process at once.

    The handler sets a flag and informs the processes that this one started. Loops look at the
    flag; a decision that all processes must take alike is made by :meth:`check`.

    Attributes:
        signum: The signal that was received, None before.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._owner = os.getpid()
        self._kill_children: Callable[[int], None] = lambda signum: None
        self._ranked: list[int] = list(HANDLED)

    @property
    def requested(self) -> bool:
        """Whether this process has received a request to end."""
        return self.signum is not None

    @contextmanager
    def handled(self, environment: object, kill_children: Callable[[int], None]) -> Iterator[None]:
        """Handle the signals in the body of a ``with`` statement; restores the handlers after it.

        Args:
            environment: Lightning's cluster environment; SLURM may use another signal.
            kill_children: Sends a signal to the processes that this one started.
        """
        if threading.current_thread() is not threading.main_thread():
            yield  # Python delivers signals to the main thread alone
            return
        self.signum = None
        self._owner = os.getpid()
        self._kill_children = kill_children
        requeue = getattr(environment, "requeue_signal", None)
        self._ranked = [*HANDLED, *([requeue] if requeue is not None else [])]
        before = {number: signal.signal(number, self._note) for number in set(self._ranked)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            return  # a worker forked from this process: its parent decides
        if self.requested and signum == signal.SIGINT:
            self._kill_children(signal.SIGKILL)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
            return
        if not self.requested:
            self.signum = signum
            name = signal.Signals(signum).name
            # print may be interrupted in the middle of its buffer; a system call may not
            os.write(2, f"dmole: {name}: ending at the next safe point\n".encode())
            self._kill_children(signal.SIGTERM)

    def until_requested(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield batches, at least one, until this process receives a request to end.

        What was cut short must not be used: call :meth:`check` after the loop.
        """
        for batch in batches:
            yield batch
            if self.requested:
                return

    def check(self, strategy: Strategy) -> None:
        """End the run on all processes if any received a request; all of them call this alike.

        Raises:
            Interrupted: If so.
        """
        if self.agreed(strategy):
            self.end()

    def end(self) -> NoReturn:
        """End the run here.

        Raises:
            Interrupted: Always.
        """
        raise Interrupted(self.signum or signal.SIGTERM)

    def agreed(self, strategy: Strategy) -> bool:
        """Return whether any process received a request to end; all of them call this alike.

        All of them then know the same signal.
        """
        here = 0 if self.signum is None else 1 + self._ranked.index(self.signum)
        weight = max_over_ranks(here, strategy.root_device)
        if weight:
            self.signum = self._ranked[weight - 1]
        return weight > 0


def requeue(environment: object, signum: int) -> str:
    """Queue the job again where SLURM ended it for that reason.

    Args:
        environment: Lightning's cluster environment.
        signum: The signal that ended the run.

    Returns:
        What was done, for the log; empty where nothing had to be done.
    """
    if not isinstance(environment, SLURMEnvironment) or not environment.auto_requeue:
        return ""
    if signum != (environment.requeue_signal or signal.SIGUSR1):
        return ""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID", "")
    if not re.fullmatch(r"[0-9_]+", job):
        return f"not queued again: SLURM_JOB_ID is {job!r}"
    try:
        result = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
    except OSError as error:
        return f"not queued again: scontrol: {error}"
    if result.returncode:
        return f"not queued again: scontrol: {result.stderr.strip() or result.returncode}"
    return f"job {job} is queued again"
