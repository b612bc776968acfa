"""Seconds, memory and parameters of a run: the content of timing.json."""

from __future__ import annotations

import resource
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Self

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@dataclass
class Lap:
    """One phase of one stage.

    Args:
        stage: 0 is before training.
        name: Name of the stage.
        phase: What was done.
        seconds: Wall-clock time.
        samples: Samples that went through, where counting makes sense.
    """

    stage: int
    name: str
    phase: str
    seconds: float = 0.0
    samples: int | None = None


@dataclass
class Costs:
    """Numbers of parameters; None where they have not been counted yet.

    Args:
        base: Of the base model.
        total: Of the base model and all experts.
        active: Those that an average test sample uses, base model included.
        trainable: Those that train in a stage, by the expert of the stage.
    """

    base: int | None = None
    total: int | None = None
    active: float | None = None
    trainable: dict[str, int] = field(default_factory=dict)

    def record(
        self,
        *,
        base: int | None = None,
        total: int | None = None,
        active: float | None = None,
        trainable: Mapping[str, int] | None = None,
    ) -> None:
        """Set the counts that are given; those of ``trainable`` join the ones of other experts."""
        self.base = self.base if base is None else base
        self.total = self.total if total is None else total
        self.active = self.active if active is None else active
        self.trainable = {**self.trainable, **(trainable or {})}

    def to_dict(self) -> dict[str, Any]:
        """Return what has been counted, as in ``timing.json`` and checkpoints."""
        return {name: count for name, count in asdict(self).items() if count not in (None, {})}

    @classmethod
    def from_dict(cls, counts: Mapping[str, Any]) -> Self:
        """Return the costs that :meth:`to_dict` described."""
        return cls(**counts)


class Clock:
    """Collects the laps of a run and describes its cost.

    Attributes:
        laps: The phases so far.
        costs: Numbers of parameters.
    """

    def __init__(self) -> None:
        self.laps: list[Lap] = []
        self.costs = Costs()
        self._started: dict[str, float] = {}

    @contextmanager
    def lap(self, stage: int, name: str, phase: str) -> Iterator[Lap]:
        """Time the body of a ``with`` statement."""
        lap = Lap(stage, name, phase)
        self._started[phase] = time.perf_counter()
        try:
            yield lap
        finally:
            lap.seconds = self.elapsed(phase)
            self.laps.append(lap)

    def elapsed(self, phase: str) -> float:
        """Return the seconds a running phase has taken so far."""
        return time.perf_counter() - self._started[phase]

    def carry(self, phase: str, seconds: float) -> None:
        """Count seconds that a running phase took in an earlier process."""
        self._started[phase] -= seconds

    def report(self) -> dict[str, Any]:
        """Return the content of timing.json: seconds a phase, samples/s, memory, parameters."""
        trained = [lap for lap in self.laps if lap.phase == "train" and lap.samples]
        inside = [lap for lap in self.laps if lap.phase in INNER_PHASES]
        seconds = sum(lap.seconds for lap in trained) - sum(lap.seconds for lap in inside)
        outer = [lap for lap in self.laps if lap.phase not in INNER_PHASES]
        return {
            "seconds": sum(lap.seconds for lap in outer),
            "phases": [asdict(lap) for lap in self.laps],
            "train_samples_per_second": sum(lap.samples or 0 for lap in trained) / seconds
            if seconds
            else None,
            "peak_memory_bytes": peak_memory(),
            "parameters": self.costs.to_dict(),
        }


INNER_PHASES = ("embed", "allocate")
"""Phases that run inside the phase ``train`` and are counted there too."""


def peak_memory() -> int:
    """Return the most bytes used so far: of the GPU where there is one, else resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
