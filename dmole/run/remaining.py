"""An estimate of the remaining time of a stage and of the sequence, from what a run has measured.

A phase takes time in proportion to the samples that it goes through. The seconds for each sample
are those of the finished phases of the same kind, and of the running phase.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dmole.run.clock import Lap
    from dmole.run.state import SequenceState

Phase = tuple[int, str]
"""Index of a stage, and the name of one of its phases."""

_SHORT = "router"
"""A phase that an estimate leaves out until it was measured: it takes a few seconds."""


@dataclass(frozen=True)
class Remaining:
    """Estimated seconds until the end of a stage and of the sequence; None is not known yet."""

    stage: float | None
    sequence: float | None

    def text(self, *, short: bool = False) -> str:
        """Return the estimate in words; empty if nothing is known.

        Args:
            short: Whether the text has to share a line with a bar.

        Example:
            >>> Remaining(230.0, 700.0).text()
            '~4 min left in stage, ~12 min in sequence'
            >>> Remaining(230.0, 700.0).text(short=True)
            '~4 min, sequence ~12 min'
            >>> Remaining(None, None).text()
            ''
        """
        parts = []
        if self.stage is not None:
            parts.append(duration(self.stage) + ("" if short else " left in stage"))
        if self.sequence is not None:
            whole = duration(self.sequence)
            parts.append(f"sequence {whole}" if short else f"{whole} in sequence")
        return ", ".join(parts)


@dataclass(frozen=True)
class Running:
    """What was measured of a running loop over batches.

    Args:
        seconds: Time that the measured batches took.
        done: Share of the loop that these batches are, in (0, 1].
        left: Share of the loop that is left, in [0, 1).
    """

    seconds: float
    done: float
    left: float


@dataclass(frozen=True)
class Forecast:
    """What there is to do, and what was measured, at the start of a phase.

    Args:
        amounts: Number of samples that each phase goes through, in the order of the phases. A
            sample counts once for each epoch. A phase with an unknown number is not listed.
        done: The phases that are finished.
        laps: The finished phases of which the seconds are known.
        current: The phase that starts.

    Example:
        >>> from dmole.run.clock import Lap
        >>> amounts = {(1, "train"): 100, (1, "evaluate"): 50, (2, "train"): 200}
        >>> laps = [Lap(1, "paint", "train", 60.0), Lap(1, "paint", "evaluate", 5.0)]
        >>> done = [(1, "train"), (1, "evaluate")]
        >>> Forecast(amounts, done, laps, (2, "train")).remaining()
        Remaining(stage=120.0, sequence=120.0)
    """

    amounts: Mapping[Phase, int]
    done: Collection[Phase]
    laps: Sequence[Lap]
    current: Phase

    def remaining(self, running: Running | None = None) -> Remaining:
        """Return the estimate.

        Args:
            running: What was measured of the current phase, whose own speed then counts.
        """
        rates = self._rates(running)
        later = [phase for phase in self.amounts if phase not in self.done]
        of_stage = [phase for phase in later if phase[0] == self.current[0]]
        return Remaining(self._sum(of_stage, rates, running), self._sum(later, rates, running))

    def _rates(self, running: Running | None) -> dict[str, float]:
        """Return the seconds for a sample in each kind of phase that was measured."""
        rates: dict[str, float] = {}
        for kind in {phase for _, phase in self.amounts}:
            laps = [lap for lap in self.laps if lap.phase == kind and self._amount(lap)]
            # before training, all test samples are answered, and later only those that changed
            laps = [lap for lap in laps if lap.stage] or laps
            if laps:
                rates[kind] = sum(lap.seconds for lap in laps) / sum(map(self._amount, laps))
        kind, amount = self.current[1], self.amounts.get(self.current)
        if running is not None and kind not in rates and amount:
            rates[kind] = running.seconds / (running.done * amount)
        return rates

    def _amount(self, lap: Lap) -> int:
        return self.amounts.get((lap.stage, lap.phase), 0)

    def _sum(
        self, phases: Sequence[Phase], rates: Mapping[str, float], running: Running | None
    ) -> float | None:
        """Return the seconds of some phases; None if a long one of them was never measured."""
        total = 0.0
        for phase in phases:
            if phase == self.current and running is not None:
                total += running.seconds / running.done * running.left
            elif phase[1] in rates:
                total += rates[phase[1]] * self.amounts[phase]
            elif phase[1] != _SHORT and self.amounts[phase]:
                return None
        return total if phases else None


class Pace:
    """Measures a running loop over batches.

    Example:
        >>> pace = Pace()
        >>> pace.start(0.25)
        >>> pace.reach(0.5)
        >>> pace.running().done, pace.running().left
        (0.25, 0.5)
    """

    def __init__(self) -> None:
        self._began: tuple[float, float] | None = None  # time, and share that was done before
        self._reached: tuple[float, float] | None = None

    @property
    def started(self) -> bool:
        """Whether a loop is measured."""
        return self._began is not None

    def start(self, share: float) -> None:
        """Start with the share of the loop that an earlier process has done."""
        self._began, self._reached = (time.monotonic(), share), None

    def reach(self, share: float) -> None:
        """Note the share of the loop that is done now."""
        self._reached = time.monotonic(), share

    def stop(self) -> None:
        """End the measurement."""
        self._began = self._reached = None

    def running(self) -> Running | None:
        """Return what was measured; None before the first batch is done."""
        if self._began is None or self._reached is None or self._reached[1] <= self._began[1]:
            return None
        (began, before), (now, share) = self._began, self._reached
        return Running(now - began, share - before, max(0.0, 1 - share))


def forecast(state: SequenceState) -> Forecast:
    """Return the forecast at the start of the current phase. It reads no file of samples anew."""
    data, amounts = state.data, dict[Phase, int]()
    tested = {task: len(data.test_samples(task)) for task in data.tested_task_names}
    for index in range(len(state.plan) + 1):
        amounts[index, "evaluate"] = sum(tested[task] for task in state.tasks_to_evaluate(index))
    for stage in state.plan:
        if "train" in state.splits and stage.index > state.inherited.stages:
            amounts[stage.index, "train"] = len(data.stage_items(stage)) * data.epochs(stage.tasks)
            amounts[stage.index, "router"] = len(data.arriving_items(stage))
    current = state.stage.index, state.phase
    return Forecast(amounts, frozenset(state.done), tuple(state.clock.laps), current)


def duration(seconds: float) -> str:
    """Return an estimated time in one or two units.

    Example:
        >>> [duration(seconds) for seconds in (0.2, 41, 230, 7800, 273600)]
        ['~1 s', '~41 s', '~4 min', '~2 h 10 min', '~3 d 4 h']
    """
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 59.5:
        return f"~{max(1, math.ceil(seconds - 0.5))} s"
    if minutes < 60:
        return f"~{minutes} min"
    if hours < 48:
        return f"~{minutes // 60} h" + (f" {minutes % 60} min" if minutes % 60 else "")
    return f"~{hours // 24} d" + (f" {hours % 24} h" if hours % 24 else "")
