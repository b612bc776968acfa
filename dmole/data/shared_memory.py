"""Room in /dev/shm, through which data workers pass large batches on; containers have 64 MB."""

from __future__ import annotations

import logging
import os
import threading

import torch.distributed as dist
from torch.utils.data import get_worker_info

log = logging.getLogger("dmole")

_PROCESSES = 16
"""Processes of a run that share a machine, at most."""
_LITTLE = 2**30
"""Bytes of shared memory below which a lost worker may be due to it."""
_warned = threading.Event()


def sizes() -> tuple[int, int]:
    """Return all and the free bytes of shared memory; without /dev/shm there is no limit."""
    try:
        found = os.statvfs("/dev/shm")
    except OSError:  # another operating system
        return 2**63, 2**63
    return found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize


def has_room(size: int) -> bool:
    """Return whether a worker may put a batch into shared memory.

    The kernel kills a process that writes more than there is. So there must be room for a batch
    of every worker of the machine, and for batches twice as large as this one.

    Args:
        size: Bytes of the batch.
    """
    worker = get_worker_info()
    if worker is None:
        return True  # what this process copies or saves needs none
    processes = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    return 2 * size * worker.num_workers * min(processes, _PROCESSES) <= sizes()[1]


def warn_of_pipe(size: int) -> None:
    """Say once that batches come without shared memory.

    Args:
        size: Bytes of the batch.
    """
    if _warned.is_set():
        return
    _warned.set()
    log.warning(
        "%s, too little for the batches of %s from data workers: they come through pipes, which "
        "is slower; %s",
        describe(),
        _megabytes(size),
        ADVICE,
    )


ADVICE = "give the container more, as with docker run --shm-size=8g, or lower data.num_workers"
"""What to do about little shared memory."""


def describe() -> str:
    """Return all and the free bytes of shared memory as a text."""
    total, free = sizes()
    return f"/dev/shm has {_megabytes(total)}, {_megabytes(free)} of it free"


def is_little() -> bool:
    """Return whether there is so little shared memory that a worker may be lost by it."""
    return sizes()[0] < _LITTLE


def _megabytes(size: int) -> str:
    return f"{size / 2**20:.3g} MB"
