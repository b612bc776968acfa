"""Signals that request the end of a run: recorded on arrival, handled at the next safe point."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn, TypeVar

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

from dmole.distributed import is_distributed, max_over_ranks
from dmole.run.signal_copies import copied_signals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import FrameType

    from lightning.pytorch.strategies import Strategy

T = TypeVar("T")

_PATIENCE = 1.0  # seconds after which a main thread that has not handled a signal is blocked
_LIMIT = 600.0  # seconds in which several processes must reach a safe point

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""In increasing priority: if ranks receive different signals, the last one counts."""


class Interrupted(Exception):  # noqa: N818 - a fulfilled request, not an error
    """A signal requested the end of the run, which saved its state and ended.

    Args:
        signum: The signal.
        message: States stage and phase of the run; empty on all ranks but 0.
        exit_status: For the shell; by convention 128 plus the number of the signal.
    """

    def __init__(self, signum: int, message: str = "", exit_status: int | None = None) -> None:
        super().__init__(message)
        self.signum = signum
        self.exit_status = 128 + signum if exit_status is None else exit_status


class Interruption:
    """Records SIGTERM, SIGUSR1 and Ctrl-C; a second signal ends the process at once.

    The handler sets a flag and signals the processes that this process started. Loops check the
    flag. A decision that must be the same on all processes is made by :meth:`check`.

    Python runs a handler in the main thread only, which may hang in a collective operation. So a
    thread reads the signals too: it ends the process on a second one. A signal that follows within
    a second is the same request: Ctrl-C reaches a process from its terminal and its launcher.

    Args:
        advice: Returns how to resume the run, for the message of a process that ends at once.

    Attributes:
        signum: The signal received; None if there is none yet.
    """

    def __init__(self, advice: Callable[[], str] = str) -> None:
        self.signum: int | None = None
        self.advice = advice
        self._owner = os.getpid()
        self._kill_children: Callable[[int], None] = lambda signum: None
        self._ranked: list[int] = list(HANDLED)
        self._first = threading.Lock()  # held from the first signal on
        self._immediate = False
        self._timers: list[threading.Timer] = []

    @property
    def requested(self) -> bool:
        """Whether this process has received a request to end."""
        return self.signum is not None

    @contextmanager
    def handled(self, environment: object, kill_children: Callable[[int], None]) -> Iterator[None]:
        """Handle the signals in the body of a ``with`` statement, then restore the handlers.

        Args:
            environment: Lightning's cluster environment; SLURM may use another signal.
            kill_children: Sends a signal to the processes that this process started.
        """
        if threading.current_thread() is not threading.main_thread():
            yield  # Python delivers signals only to the main thread
            return
        self.signum = None
        self._first = threading.Lock()
        self._owner = os.getpid()
        self._kill_children = kill_children
        requeue = getattr(environment, "requeue_signal", None)
        self._ranked = [*HANDLED, *([requeue] if requeue is not None else [])]
        with copied_signals(self._count):
            previous = {n: signal.signal(n, self._handle) for n in set(self._ranked)}
            try:
                yield
            finally:
                for number, handler in previous.items():
                    signal.signal(number, handler)
                for timer in self._timers:
                    timer.cancel()

    @contextmanager
    def immediate(self) -> Iterator[None]:
        """End the process at the first signal if the body of a ``with`` statement blocks."""
        self._immediate = True
        try:
            yield
        finally:
            self._immediate = False

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() == self._owner:  # a worker forked from this process lets its parent decide
            self._note(signum)

    def _note(self, signum: int) -> None:
        """Record the first signal, in the thread that learns of it first."""
        if self._first.acquire(blocking=False):
            self.signum = signum
            name = signal.Signals(signum).name
            # print is not safe in a signal handler, a system call is
            os.write(2, f"dmole: {name}: ending at the next safe point; again: at once\n".encode())
            self._kill_children(signal.SIGTERM)

    def _count(self, signum: int, earlier: float | None) -> bool:
        """Handle a signal in a thread of its own; see `copied_signals`."""
        if signum not in self._ranked:
            return False
        if earlier is None:
            for seconds, act in ((_PATIENCE, self._follow), (_LIMIT, self._give_up)):
                timer = threading.Timer(seconds, act, (signum,))
                timer.daemon = True
                timer.start()
                self._timers.append(timer)
        elif earlier > _PATIENCE:
            self._end_at_once(signum, "ended by a second signal")
        return True

    def _follow(self, signum: int) -> None:
        """Record a signal that the main thread has not handled."""
        self._note(signum)
        if self._immediate:
            self._end_at_once(signum, "ended before all ranks were connected")

    def _give_up(self, signum: int) -> None:
        """End a process of several that may wait in a collective operation for ever."""
        if is_distributed():
            self._end_at_once(signum, f"no safe point within {_LIMIT:.0f} seconds")

    def _end_at_once(self, signum: int, reason: str) -> None:
        self._kill_children(signal.SIGKILL)
        text = "; ".join(filter(None, (f"{signal.Signals(signum).name}: {reason}", self.advice())))
        os.write(2, f"dmole: {text}\n".encode())
        os._exit(128 + signum)

    def until_requested(self, batches: Iterable[T], in_step: Strategy | None = None) -> Iterator[T]:
        """Yield batches, at least one, until this process receives a request to end.

        Call :meth:`check` after the loop, so that no incomplete result is used.

        Args:
            batches: The batches; in step, all ranks have as many.
            in_step: The strategy if all ranks must end after the same batch; None otherwise.
        """
        for batch in batches:
            yield batch
            if self.requested if in_step is None else self.agreed(in_step):
                return

    def check(self, strategy: Strategy) -> None:
        """End the run on all processes if any has received a request. All of them must call it.

        Raises:
            Interrupted: If a process has received a request.
        """
        if self.agreed(strategy):
            self.end()

    def end(self) -> NoReturn:
        """End the run at this point.

        Raises:
            Interrupted: Always.
        """
        raise Interrupted(self.signum or signal.SIGTERM)

    def agreed(self, strategy: Strategy) -> bool:
        """Return whether any process has received a request to end. All of them must call it.

        If so, ``signum`` becomes the same on all processes.
        """
        here = 0 if self.signum is None else 1 + self._ranked.index(self.signum)
        weight = max_over_ranks(here, strategy.root_device)
        if weight:
            self.signum = self._ranked[weight - 1]
        return weight > 0


def requeue(environment: object, signum: int) -> str:
    """Queue a SLURM job again if the signal is SLURM's requeue signal.

    Args:
        environment: Lightning's cluster environment.
        signum: The signal that ended the run.

    Returns:
        A text for the log; empty if there is no job to requeue.
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
