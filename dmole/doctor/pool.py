"""Runs the passes over the files in several processes and shows their progress."""

from __future__ import annotations

import os
import queue
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from functools import partial
from multiprocessing import get_all_start_methods, get_context
from typing import Any

import torch
from tqdm import tqdm

Job = Callable[..., Any]
"""A pass over a file, called with the keyword ``tick``."""


def available_processes() -> int:
    """Return the number of processors available to this process."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_jobs(jobs: Sequence[Job], processes: int, *, progress: bool | None = None) -> list[Any]:
    """Run jobs and return their results in order.

    Args:
        jobs: The jobs. With worker processes, jobs and results are pickled.
        processes: Number of worker processes; 0 runs the jobs in this process.
        progress: Whether to show a progress bar on standard error; the default is to show it if
            standard error is a terminal.

    Raises:
        OSError: If a process dies, for instance for lack of memory.
    """
    shown = sys.stderr.isatty() if progress is None else progress
    with tqdm(unit=" items", disable=not shown, file=sys.stderr, leave=False) as bar:
        if processes == 0 or not jobs:
            return [job(tick=bar.update if shown else None) for job in jobs]
        try:
            return _in_processes(jobs, min(processes, len(jobs)), bar if shown else None)
        except BrokenProcessPool as error:
            raise OSError(
                "a process died while reading the data, perhaps for lack of memory: "
                "use fewer --processes"
            ) from error


def _in_processes(jobs: Sequence[Job], processes: int, bar: Any) -> list[Any]:
    # a forked process has the libraries and the processor loaded already; forking is safe on
    # Linux only
    forks = sys.platform == "linux" and "fork" in get_all_start_methods()
    context = get_context("fork" if forks else None)
    with ExitStack() as stack:
        ticks = stack.enter_context(context.Manager()).Queue() if bar is not None else None
        pool = stack.enter_context(
            ProcessPoolExecutor(processes, mp_context=context, initializer=_start_worker)
        )
        tick = None if ticks is None else ticks.put
        futures = [pool.submit(partial(job, tick=tick)) for job in jobs]
        waiting: set[Future[Any]] = set(futures)
        try:
            while waiting:
                timeout = None if bar is None else 0.2
                done, waiting = wait(waiting, timeout, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()  # raises the first failure at once
                if bar is not None:
                    _update(bar, ticks, f"{len(jobs) - len(waiting)} of {len(jobs)} passes")
        finally:
            for future in waiting:
                future.cancel()
        return [future.result() for future in futures]


def _update(bar: Any, ticks: Any, text: str) -> None:
    bar.set_description(text, refresh=False)
    while True:
        try:
            bar.update(ticks.get_nowait())
        except queue.Empty:
            bar.refresh()
            return


def _start_worker() -> None:
    # the tokenizer's threads do not survive the fork; this setting silences its warning
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # torch's threads do not survive it either, and the processes share the processors already
    torch.set_num_threads(1)
