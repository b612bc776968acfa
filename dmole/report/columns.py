"""What a comparison shows of a run: its columns, each with what the figure is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from dmole.report.runs import Run

Group = Mapping[str, Sequence[Run]]
"""Runs by method; those of one method are repeats with other seeds."""

PER_TASK: dict[str, Literal["high", "low"]] = {
    "Last": "high",
    "AVG": "high",
    "BWT": "high",
    "Forgetting": "low",
}
"""Figures that are shown of each task too, and which end is better."""


@dataclass(frozen=True)
class Column:
    """One figure of a run.

    Args:
        name: Head of the column.
        read: Returns the figure, NaN where it is missing.
        define: Returns what the figure is, as computed for this run.
        better: Which end is better; None for costs, where no end is best alone, and for figures
            that need the task's identity.
        whole: Whether it is written as a whole number.
        optional: Whether the column is left out where no run has the figure.
    """

    name: str
    read: Callable[[Run], float]
    define: Callable[[Run], str | None]
    better: Literal["high", "low"] | None = None
    whole: bool = False
    optional: bool = False


def _figure(name: str, better: Literal["high", "low"] = "high") -> Column:
    def define(run: Run) -> str | None:
        return (run.metrics.get("definitions") or {}).get(name)

    return Column(name, lambda run: run.figure(name), define, better)


def _oracle(name: str) -> Column:
    def define(run: Run) -> str | None:
        stated = ((run.metrics.get("oracle") or {}).get("definitions") or {}).get(name)
        return f"with each sample's own task's expert alone: {stated}" if stated else None

    return Column(f"oracle {name}", lambda run: run.oracle(name), define)


def _active_text(run: Run) -> str:
    base = run.parameters.get("base")
    size = f"the {base:,} " if isinstance(base, int) else "those "
    return (
        "parameters of the experts that an average test sample uses at the last evaluation; "
        f"{size}of the base model not counted"
    )


def _retention(run: Run) -> float:
    value = (run.metrics.get("retention") or {}).get("change")
    return math.nan if value is None else float(value)


COLUMNS: tuple[Column, ...] = (
    _figure("Last"),
    _figure("AVG"),
    _figure("BWT"),
    _figure("MAA"),
    _figure("Forgetting", "low"),
    _oracle("Last"),
    _oracle("BWT"),
    Column(
        "retention change",
        _retention,
        lambda run: (run.metrics.get("retention") or {}).get("definition"),
        "high",
        optional=True,
    ),
    Column(
        "trainable parameters per task",
        lambda run: run.trainable_per_task,
        lambda run: "mean over the experts of the parameters trained",
        whole=True,
    ),
    Column("active added parameters", lambda run: run.active_added, _active_text, whole=True),
    Column(
        "seconds",
        lambda run: run.seconds,
        lambda run: "wall-clock time of all phases, evaluation included",
        whole=True,
    ),
)
"""What the table shows of a run, in this order."""
