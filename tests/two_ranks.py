"""Processes of one machine as torchrun would start them; two unless said otherwise."""

from __future__ import annotations

import multiprocessing
import os
import queue
import socket
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

SECONDS = 240
"""A hanging collective operation fails a test after this time."""


def free_port() -> str:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return str(server.getsockname()[1])


def become_rank(rank: int, port: str, world: int = 2) -> None:
    """Set the environment of one of the processes."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "TORCHELASTIC_RUN_ID": "test",
    }


def on_ranks(world: int, work: Callable[[], Any]) -> list[Any]:
    """Return what some work returns on each of several processes, which are forked."""
    context = multiprocessing.get_context("fork")
    answers, port = context.Queue(), free_port()

    def run(rank: int) -> None:
        become_rank(rank, port, world)
        try:
            answers.put((rank, work(), ""))
        except BaseException:
            answers.put((rank, None, traceback.format_exc()))
            raise

    processes = [context.Process(target=run, args=(rank,)) for rank in range(world)]
    for process in processes:
        process.start()
    found: dict[int, Any] = {}
    try:
        for _ in range(SECONDS):
            with suppress(queue.Empty):
                rank, result, error = answers.get(timeout=1)
                assert not error, error
                found[rank] = result
            if len(found) == world:
                break
            lost = [r for r, p in enumerate(processes) if p.exitcode not in (None, 0)]
            assert not lost, f"rank {lost[0]} ended with {processes[lost[0]].exitcode}"
        assert len(found) == world, "the ranks wait for each other"
    finally:
        for process in processes:
            process.join(timeout=10)
            process.kill()
    return [found[rank] for rank in range(world)]
