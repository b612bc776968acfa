"""Where the processor time of a step and of an answer goes, by place in the code."""

from __future__ import annotations

import cProfile
import itertools
import pstats
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments.speed.answers import answer
from experiments.speed.page import Row
from experiments.speed.steps import step
from experiments.speed.subjects import Subject
from experiments.speed.timing import Ratio, Work


def profile_rows(subject: Subject, rounds: int, experts: int = 8) -> Iterator[Row]:
    """Yield the most expensive places of a training step and of an answer, with their share."""
    numbers = itertools.count()
    works = {
        "training step": step(subject, experts, numbers, new=True, partners=0),
        "answer": answer(subject, experts, numbers, new=True),
    }
    for name, work in works.items():
        for place, share in most_expensive(work, repeats=rounds):
            section = f"share of the time of a {name}, T = {experts}"
            yield Row(section.replace("a answer", "an answer"), place, subject.name, _one(share))


def _one(value: float) -> Ratio:
    return Ratio(value, value, value)


def most_expensive(work: Work, places: int = 5, repeats: int = 3) -> list[tuple[str, float]]:
    """Return the Python functions with most time of their own, and their share.

    The time of a function that is written in C counts for its callers.

    Args:
        work: What is profiled, after one warm-up.
        places: How many functions to return.
        repeats: How often the work runs.
    """
    work()
    profile = cProfile.Profile()
    profile.enable()
    for _ in range(repeats):
        work()
    profile.disable()
    statistics: Any = pstats.Stats(profile)
    own = own_seconds(statistics.stats)
    total = own.total()
    return [(place, seconds / total) for place, seconds in own.most_common(places)]


def own_seconds(stats: Mapping[tuple[str, int, str], tuple[Any, ...]]) -> Counter[str]:
    """Return seconds by place, with those of functions in C moved to their callers.

    Args:
        stats: As in `pstats.Stats`: calls, seconds and callers by file, line and name.
    """
    own: Counter[str] = Counter()
    for (file, _, name), (_, _, seconds, _, callers) in stats.items():
        if file != "~":
            own[_place(file, name)] += seconds
            continue
        for (other, _, called_from), (_, _, part, _) in callers.items():
            own[_place(other, called_from)] += part
    return own


def _place(file: str, name: str) -> str:
    if file == "~":
        return name
    path = Path(file)
    return f"{path.parent.name}/{path.name}: {name}"
