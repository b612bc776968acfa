"""Ends all processes of a run soon after one of them has failed, and says why.

The launchers (Lightning's observer of its children, torchrun's agent, `srun --kill-on-bad-exit`)
end the others too, but not as well. Without `PeerWatch`, the others print a traceback of 70 lines
of a closed connection below the cause. Without `watch_parent`, a process whose starter is killed
before they are connected waits for it: with gloo it was there after 150 seconds.
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
_PERIOD = 1.0  # seconds between two looks
_LOST = 5  # looks in vain before rank 0 counts as gone
_LAST_WAY_OUT = 20.0  # seconds after which a failed process ends even if something blocks it


class PeerError(ValueError):
    """Another process failed; the message is that one's."""


class PeerWatch:
    """Informs the other processes of a failure, and ends this one when another one failed.

    A process that waits for others in a collective operation cannot find out by itself that one
    of them is gone, or finds out late and with a message that hides the cause. So failures go
    through a separate store, and a thread watches it.
    """

    def __init__(self) -> None:
        self._store: TCPStore | None = None
        self._rank = 0
        self._stopped = threading.Event()

    def start(self) -> None:
        """Begin to watch; all processes call this alike. Does nothing in a single process."""
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
        """End the watch, when the run is done."""
        self._stopped.set()

    def announce(self, error: BaseException) -> BaseException:
        """Inform the other processes of a failure and return the error to raise.

        Args:
            error: What happened here; a consequence of an earlier failure elsewhere, if one was
                announced before.
        """
        if self._store is None:
            return error
        self.stop()
        failure = json.dumps([self._rank, one_line(error)])
        try:
            rank, message = json.loads(self._store.compare_set(_FAILURE, "", failure))
        except RuntimeError:  # dist.DistStoreError among them: rank 0 is gone with its store
            return PeerError(f"the connection to rank 0 is lost ({one_line(error)})")
        timer = threading.Timer(_LAST_WAY_OUT, os._exit, (1,))
        timer.daemon = True
        timer.start()
        if rank != self._rank:
            return PeerError(f"rank {rank} failed: {message}")
        if self._rank == 0:
            time.sleep(2 * _PERIOD)  # the store ends with this process: let the others look first
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
                if failures >= _LOST:
                    self._leave("the connection to rank 0 is lost")

    def _leave(self, message: str) -> None:
        # the main thread may hang in a collective operation, so it cannot end by itself
        if not self._stopped.is_set():
            os.write(2, f"dmole: rank {self._rank} ends: {message}\n".encode())
            os._exit(1)


def watch_parent(parent: int) -> None:
    """End this process soon after the one that started it, however that one ends.

    Before the processes are connected nothing else reports its end: this one would wait for it
    for half an hour.

    Args:
        parent: Process that started this one.

    Raises:
        PeerError: If it is gone already.
    """
    if os.getppid() != parent:
        raise PeerError("the process that started this one is gone")
    threading.Thread(target=_leave_with, args=(parent,), name="dmole-parent", daemon=True).start()


def _leave_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_PERIOD)
    os.write(2, b"dmole: the process that started this one is gone\n")
    os._exit(1)
