"""Ends all processes of a run soon after one of them has failed, and reports the cause.

The launchers (Lightning's observer of its children, torchrun's agent, `srun --kill-on-bad-exit`)
end the other processes too, but not as well. Without `PeerWatch`, the others print a traceback of
70 lines about a closed connection below the cause. Without `watch_parent`, a process whose parent
is killed before they are connected waits for it: with gloo it still ran after 150 seconds.
"""

from __future__ import annotations

import json
import os
import threading
import time
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from dmole.distributed import broadcast, is_distributed
from dmole.messages import one_line

_FAILURE = "failure"
_PERIOD = 1.0  # seconds between two checks
_MAX_FAILED_CHECKS = 5  # consecutive failed checks after which the connection to rank 0 is lost
_EXIT_TIMEOUT = 20.0  # seconds after which a failed process exits even if it is blocked


class PeerError(ValueError):
    """Another process failed; the message comes from that process."""


class PeerWatch:
    """Reports a failure to the other processes, and ends this process when another one failed.

    A process that waits in a collective operation does not notice that another process has ended,
    or notices it late, with a message that hides the cause. So failures are written to a separate
    store, which a thread of every process checks.
    """

    def __init__(self) -> None:
        self._store: TCPStore | None = None
        self._rank = 0
        self._stopped = threading.Event()

    def start(self) -> None:
        """Start watching. All processes must call it; it has no effect in a single process."""
        if self._store is not None or not is_distributed():
            return
        self._rank = dist.get_rank()
        timeout = timedelta(seconds=30)
        host = os.environ["MASTER_ADDR"]
        options: dict[str, Any] = {"timeout": timeout, "wait_for_workers": False}
        if self._rank == 0:
            self._store = TCPStore(host, 0, is_master=True, **options)
        port = broadcast(0 if self._store is None else self._store.port)
        if self._store is None:
            self._store = TCPStore(host, port, is_master=False, **options)
        threading.Thread(target=self._watch, name="dmole-peers", daemon=True).start()

    def stop(self) -> None:
        """Stop watching, at the end of the run."""
        self._stopped.set()

    def announce(self, error: BaseException) -> BaseException:
        """Report a failure to the other processes and return the error to raise.

        Args:
            error: The error in this process. If another process has reported a failure before,
                it is a consequence, and the returned error names the earlier failure.
        """
        if self._store is None:
            return error
        self.stop()
        failure = json.dumps([self._rank, one_line(error)])
        try:
            rank, message = json.loads(self._store.compare_set(_FAILURE, "", failure))
        except RuntimeError:  # dist.DistStoreError for example: rank 0 has ended, with its store
            return PeerError(f"the connection to rank 0 is lost ({one_line(error)})")
        timer = threading.Timer(_EXIT_TIMEOUT, os._exit, (1,))
        timer.daemon = True
        timer.start()
        if rank != self._rank:
            return PeerError(f"rank {rank} failed: {message}")
        if self._rank == 0:
            time.sleep(2 * _PERIOD)  # the store ends with this process: let the others check first
        return error

    def _watch(self) -> None:
        assert self._store is not None
        failures = 0
        while not self._stopped.wait(_PERIOD):
            try:
                if self._store.check([_FAILURE]):
                    rank, message = json.loads(self._store.get(_FAILURE))
                    self._leave(f"rank {rank} failed: {message}")
                failures = 0
            except RuntimeError:
                failures += 1
                if failures >= _MAX_FAILED_CHECKS:
                    self._leave("the connection to rank 0 is lost")

    def _leave(self, message: str) -> None:
        # the main thread may hang in a collective operation and cannot raise an error
        if not self._stopped.is_set():
            os.write(2, f"dmole: rank {self._rank} ends: {message}\n".encode())
            os._exit(1)


def watch_parent(parent: int) -> None:
    """End this process soon after its parent has ended, for whatever reason.

    Before the processes are connected, no other mechanism reports the end of the parent, and this
    process would wait for half an hour.

    Args:
        parent: Id of the process that started this one.

    Raises:
        PeerError: If the parent has ended already.
    """
    if os.getppid() != parent:
        raise PeerError("the process that started this one is gone")
    threading.Thread(target=_leave_with, args=(parent,), name="dmole-parent", daemon=True).start()


def _leave_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_PERIOD)
    os.write(2, b"dmole: the process that started this one is gone\n")
    os._exit(1)
