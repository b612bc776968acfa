"""Processor times of works that take turns, and their ratios."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Work = Callable[[], object]


@dataclass(frozen=True)
class Ratio:
    """The median of paired ratios, and their quartiles."""

    median: float
    low: float
    high: float


class Times:
    """The seconds of each work in every round.

    Args:
        seconds: By work; all are equally many.
    """

    def __init__(self, seconds: Mapping[str, Sequence[float]]) -> None:
        self.seconds = {name: list(values) for name, values in seconds.items()}

    def median(self, name: str) -> float:
        """Return the median seconds of a work."""
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, other: str) -> Ratio:
        """Return the ratio of two works, paired within each round."""
        pairs = zip(self.seconds[name], self.seconds[other], strict=True)
        return spread([first / second for first, second in pairs])


def spread(values: Sequence[float]) -> Ratio:
    """Return median and quartiles; with one value, all are that value."""
    if len(values) == 1:
        return Ratio(values[0], values[0], values[0])
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return Ratio(middle, low, high)


def take_turns(works: Mapping[str, Work], rounds: int) -> Times:
    """Time works in turn by the processor time of this process.

    Each round starts with another work, so that none always follows the same one.

    Args:
        works: What is timed, by name; each runs once before.
        rounds: Number of rounds.
    """
    for work in works.values():
        work()
    names = list(works)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            begin = time.process_time()
            works[name]()
            seconds[name].append(time.process_time() - begin)
    return Times(seconds)
