"""Worker processes of a loader, none of which outlives the process that started it."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import re
import signal
import threading
import time
from typing import Any
from weakref import WeakSet

import torch
from torch.utils.data import DataLoader

from dmole.data import shared_memory
from dmole.data.collate import TaskSample

_WATCH_EVERY = 1.0
"""Seconds after which a worker looks again whether its parent is alive."""


_LOST = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? (?P<pids>[\d, ]+)\) "
    r"(?:is killed by signal: (?P<signal>[\w ]+)|exited unexpectedly)"
)
"""What torch says where a worker is lost, in the main thread, whatever that is at."""


class WorkerError(ValueError):
    """A data worker is lost."""


def explain_lost_worker(error: Exception) -> Exception:
    """Return one line with cause and remedy if a data worker is lost, else the error itself.

    Args:
        error: Any error of this process.
    """
    # the signal is in the error that interrupted the wait for a batch
    chain = [found for found in (error.__cause__, error) if isinstance(found, RuntimeError)]
    found = next(filter(None, (_LOST.search(str(link)) for link in chain)), None)
    if found is None:
        return error
    killed = f"was killed ({found['signal']})" if found["signal"] else "ended unexpectedly"
    text = f"data worker (process {found['pids']}) {killed}"
    if found["signal"] == "Killed":
        return WorkerError(
            f"{text}, as the system does when memory runs out: lower data.num_workers"
        )
    if found["signal"] == "Bus error" or shared_memory.is_little():
        return WorkerError(f"{text}; {shared_memory.describe()}: {shared_memory.ADVICE}")
    return WorkerError(f"{text}: data.num_workers 0 shows the cause")


class Loader(DataLoader[TaskSample]):
    """A data loader whose workers end before the process does.

    Workers ignore SIGTERM, with which Python ends what is left of them and then waits for it.
    """

    def __iter__(self) -> Any:
        """Return an iterator over the batches."""
        iterator = super().__iter__()
        if self.num_workers > 0:
            _with_workers.add(iterator)
        return iterator


_with_workers: WeakSet[Any] = WeakSet()
"""Iterators of this process that may have workers."""


@atexit.register  # after multiprocessing, so it runs before it
def _end_workers() -> None:
    for iterator in list(_with_workers):
        iterator._shutdown_workers()  # Lightning ends workers by it, too


def worker_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options with defaults that leave the global generator untouched."""
    # without a generator argument each pass draws the workers' seed from the global generator
    generator = torch.Generator().manual_seed(0)
    return {"generator": generator, "worker_init_fn": _start_worker, **options}


def _start_worker(worker: int) -> None:
    # the tokenizer's threads do not survive the fork; this setting silences its warning
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # a cluster signals every process of a job; the parent decides when a worker ends
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if (parent := multiprocessing.parent_process()) is not None and parent.pid is not None:
        threading.Thread(target=_end_after, args=(parent.pid,), daemon=True).start()


def _end_after(parent: int) -> None:
    """End this worker once its parent was killed.

    Torch's own check does not suffice: a worker whose batches fill the pipe waits for someone to
    read them, and each worker holds the end that all others read from.
    """
    while os.getppid() == parent:
        time.sleep(_WATCH_EVERY)
    os._exit(1)
