"""What the sections share: their setting, the rows that they yield, time and memory of a device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Row = tuple[str, Any, str]
"""What was measured, its value, and a note."""

GIB = 2**30


@dataclass(frozen=True)
class Setting:
    """How the sections run.

    Args:
        accelerator: ``cuda`` or ``cpu``.
        folder: Folder for runs and models.
        repeats: Measurements of each time; the median is reported.
        base: ``7b`` for a random LLaVA-1.5-7B, ``tiny`` for a random LLaVA that a CPU can run;
            ``medium`` and ``wide`` are those of `experiments.performance`.
        dtype: Type of the weights of the random LLaVA.
    """

    accelerator: str
    folder: Path
    repeats: int = 5
    base: str = "7b"
    dtype: torch.dtype = torch.bfloat16

    @property
    def device(self) -> torch.device:
        """The device that is measured."""
        return torch.device(self.accelerator)


class NotRunError(Exception):
    """A section needs something that the machine lacks; the message says what."""


def need(available: bool, reason: str) -> None:
    """Leave the section unless its need is met.

    Raises:
        NotRunError: If it is not.
    """
    if not available:
        raise NotRunError(reason)


def synchronize(device: torch.device) -> None:
    """Wait for the work of the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the wall time of some work, its kernels included."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def medians(
    works: Mapping[str, Callable[[], object]], device: torch.device, repeats: int
) -> dict[str, float]:
    """Return the median seconds of each work; the works are interleaved, after one warm-up each."""
    for work in works.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            times[name].append(seconds(work, device))
    return {name: statistics.median(values) for name, values in times.items()}


def peak_gib(work: Callable[[], object], device: torch.device) -> float:
    """Return the largest memory of tensors during some work, in GiB; 0 on a CPU."""
    if device.type != "cuda":
        work()
        return 0.0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    work()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) / GIB


def held_gib(device: torch.device) -> float:
    """Return the memory of all tensors on the device, in GiB; 0 on a CPU."""
    return torch.cuda.memory_allocated(device) / GIB if device.type == "cuda" else 0.0


def milliseconds(values: Mapping[str, float], note: str, **notes: str) -> Iterator[Row]:
    """Yield a row for each time."""
    for name, value in values.items():
        yield f"{name}, ms", round(1000 * value, 2), notes.get(name, note)
