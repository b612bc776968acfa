"""The axes of a drawing: values, ticks and their texts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dmole.report.page.markup import label


@dataclass(frozen=True)
class Axis:
    """One axis.

    Args:
        label: What it shows, with the unit.
        low: Value at its start.
        high: Value at its end.
        ticks: Text of each tick by its value; None chooses round numbers.
        log: Whether it is logarithmic; ``low`` must then be positive.
    """

    label: str
    low: float
    high: float
    ticks: Mapping[float, str] | None = None
    log: bool = False

    def share(self, value: float) -> float:
        """Return where a value lies between start, 0, and end, 1, at most the ends."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(max(value, self.low))
        part = (value - low) / (high - low) if high != low else 0.5
        return min(1.0, max(0.0, part))

    def labels(self) -> Mapping[float, str]:
        """Return the text of each tick by its value."""
        if self.ticks is not None:
            return self.ticks
        values = _decades(self.low, self.high) if self.log else _round_steps(self.low, self.high)
        return {value: f"{value:g}" for value in values}


def stage_axis(last: int) -> Axis:
    """Return the axis of the stages of a run, from 1 to the last."""
    every = max(1, math.ceil(last / 16))
    ticks = {float(stage): str(stage) for stage in range(1, last + 1, every)}
    return Axis("after stage", 1.0, max(1, last), ticks)


def score_axis(scores: npt.NDArray[np.float64]) -> Axis:
    """Return the axis of scores in percent, to 100, or further for CIDEr, which may exceed it."""
    return Axis("score (%)", 0.0, float(np.fmax(100.0, np.nanmax(scores, initial=0.0))))


def row_axis(names: Sequence[str], text: str) -> Axis:
    """Return a vertical axis with one row for each name, the first on top."""
    return Axis(text, len(names) - 0.5, -0.5, {row: label(name) for row, name in enumerate(names)})


def _round_steps(low: float, high: float) -> list[float]:
    """Return round values between two, about five of them."""
    low, high = min(low, high), max(low, high)
    if high <= low:
        return [low]
    size = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = next(size * m for m in (1, 2, 2.5, 5, 10) if (high - low) / (size * m) <= 6)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _decades(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 times powers of ten between two values; fewer over many decades."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    if last - first <= 3:
        values = [10.0**decade * m for decade in range(first, last + 1) for m in (1, 2, 5)]
    else:
        values = [10.0**decade for decade in range(first, last + 1, max(1, (last - first) // 6))]
    return [value for value in values if low <= value <= high]
