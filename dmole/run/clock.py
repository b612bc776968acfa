"""Seconds, memory and parameter counts of a run: the content of ``timing.json``."""

from __future__ import annotations

import itertools
import resource
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from typing_extensions import Self


@dataclass
class Lap:
    """One phase of one stage.

    Args:
        stage: 0 is before training.
        name: Name of the stage.
        phase: Name of the phase.
        seconds: Wall-clock time.
        samples: Number of samples processed; None for phases that do not count them.
    """

    stage: int
    name: str
    phase: str
    seconds: float = 0.0
    samples: int | None = None


@dataclass
class Costs:
    """Numbers of parameters; None if they have not been counted yet.

    Args:
        base: Parameters of the base model.
        total: Parameters of the base model and all experts.
        active: Parameters that an average test sample uses, base model included.
        trainable: Parameters that train in a stage, by the expert of the stage.
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
        """Set the given counts; ``trainable`` is merged with the counts of other experts."""
        self.base = self.base if base is None else base
        self.total = self.total if total is None else total
        self.active = self.active if active is None else active
        self.trainable = {**self.trainable, **(trainable or {})}

    def to_dict(self) -> dict[str, Any]:
        """Return the counts that are set, as in ``timing.json`` and checkpoints."""
        return {name: count for name, count in asdict(self).items() if count not in (None, {})}

    @classmethod
    def from_dict(cls, counts: Mapping[str, Any]) -> Self:
        """Return costs from the output of :meth:`to_dict`."""
        return cls(**counts)


class Clock:
    """Times the phases of a run and reports its costs.

    Attributes:
        laps: The finished phases.
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
        """Return the seconds that a running phase has taken so far."""
        return time.perf_counter() - self._started[phase]

    def carry(self, phase: str, seconds: float) -> None:
        """Add the seconds that a running phase took in an earlier process."""
        self._started[phase] -= seconds

    def report(self) -> dict[str, Any]:
        """Return the content of ``timing.json``: seconds per phase, samples/s, memory, costs."""
        trained = [lap for lap in self.laps if lap.phase == "train" and lap.samples]
        seconds = sum(lap.seconds - self._inside(lap) for lap in trained)
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

    def _inside(self, train: Lap) -> float:
        """Return the seconds of the phases that ran inside a training phase."""
        before = itertools.takewhile(lambda lap: lap is not train, self.laps)
        inner = (lap for lap in before if lap.phase in INNER_PHASES and lap.stage == train.stage)
        return sum(lap.seconds for lap in inner)


INNER_PHASES = ("embed", "allocate")
"""Phases that run inside ``train`` or ``router``, whose seconds include theirs."""


def peak_memory() -> int:
    """Return the peak memory so far in bytes: of the GPU if there is one, else resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
