"""The columns of a comparison, each with the definition of its figure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from dmole.report.runs import Run

Group = Mapping[str, Sequence[Run]]
"""Runs by method; the runs of one method are repeats with different seeds."""

PER_TASK: dict[str, Literal["high", "low"]] = {
    "Last": "high",
    "AVG": "high",
    "BWT": "high",
    "Forgetting": "low",
}
"""Figures that are also shown for each task, and whether high or low is better."""


@dataclass(frozen=True)
class Column:
    """One figure of a run.

    Args:
        name: Header of the column.
        read: Returns the figure, NaN where it is missing.
        define: Returns the definition of the figure, as computed for this run.
        better: Whether high or low is better; None for costs, which are a trade-off, and for
            figures that need the task identity.
        whole: Whether the figure is written as a whole number.
        optional: Whether the column is left out if no run has the figure.
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
        return f"with only the expert of each sample's true task: {stated}" if stated else None

    return Column(f"oracle {name}", lambda run: run.oracle(name), define)


def _active_text(run: Run) -> str:
    base = run.parameters.get("base")
    size = f"the {base:,} parameters" if isinstance(base, int) else "those"
    return (
        "parameters of the experts that an average test sample uses at the last evaluation, "
        f"without {size} of the base model"
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
        lambda run: "mean number of trained parameters over the experts",
        whole=True,
    ),
    Column("active added parameters", lambda run: run.active_added, _active_text, whole=True),
    Column(
        "seconds",
        lambda run: run.seconds,
        lambda run: "wall-clock time of all phases, evaluation included",
        whole=True,
    ),
    Column(
        "training samples",
        lambda run: run.samples_trained,
        lambda run: "samples of all stages and epochs, replayed ones included",
        whole=True,
        optional=True,
    ),
)
"""Columns of the table, in this order."""
