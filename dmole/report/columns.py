"""The columns of a comparison, each with the definition of its figure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dmole.metrics.counterparts import COUNTERPARTS, KEY
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
        better: Whether high or low is better; None for costs, which are a trade-off, for routing
            rates, and for figures that need the task identity.
        whole: Whether the figure is written as a whole number.
        optional: Whether the column is left out if no run has the figure.
        explained: Whether the definition is printed where the figure is missing, with the reason.
    """

    name: str
    read: Callable[[Run], float]
    define: Callable[[Run], str | None]
    better: Literal["high", "low"] | None = None
    whole: bool = False
    optional: bool = False
    explained: bool = False


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
"""Columns of the main table, in this order."""

ALONE = "finetune"
"""Method whose runs learn each task with an adapter of its own, without the earlier tasks."""

_OF_TEST_SAMPLES = "share of the test samples of seen tasks after the last stage"
RATES = {
    "trained_with_partner": (
        "share of the training samples after the first stage, counted in each epoch, that also "
        "used the expert of an earlier stage"
    ),
    "second_expert": f"{_OF_TEST_SAMPLES} that use more than one expert, without a common expert",
    "foreign_too": (
        f"{_OF_TEST_SAMPLES} that the expert of another task accepts, alone or in addition"
    ),
    "own_first": f"{_OF_TEST_SAMPLES} whose first expert is that of their task",
}
"""Definitions of the routing rates of ``metrics.json`` that are shown, by key, in this order."""


def counterpart_columns() -> tuple[Column, ...]:
    """Return the figures under the definitions of other libraries, in this order."""
    return tuple(map(_counterpart, COUNTERPARTS))


def _counterpart(name: str) -> Column:
    def define(run: Run) -> str | None:
        stated: dict[str, Any] = run.metrics.get(KEY) or {}
        reason = (stated.get("missing") or {}).get(name)
        text = (stated.get("definitions") or {}).get(name)
        return f"{text}; n/a: {reason}" if text and reason else text

    return Column(name, lambda run: run.counterpart(name), define, "high", explained=True)


def learning_columns(groups: Group) -> tuple[Column, ...]:
    """Return the columns of the table of learning and routing, in this order.

    Args:
        groups: Runs by method, with the runs of `ALONE` if there are any.
    """
    levels = (_figure("Learned"), _learned_gain(groups.get(ALONE, ())))
    changes = (_figure("BWT"), _oracle("BWT"), _figure("Transfer"))
    return (*levels, *changes, *(_rate(name, text) for name, text in RATES.items()))


def _learned_gain(alone: Sequence[Run]) -> Column:
    """Return the difference in Learned to the run of `ALONE` with the same seed; NaN without it.

    It is the opposite of the intransigence of Chaudhry et al., 2018,
    https://arxiv.org/abs/1801.10112, with a model trained on the task alone as the reference.
    """
    learned: dict[int | None, float] = {
        run.seed: run.figure("Learned") for run in alone if run.seed is not None
    }
    text = (
        f"Learned minus Learned of the run of {ALONE} with the same seed; what the earlier tasks "
        "add to learning a task, where both methods place experts alike; negative: intransigence"
    )
    return Column(
        f"Learned - {ALONE}",
        lambda run: run.figure("Learned") - learned.get(run.seed, math.nan),
        lambda run: text,
        "high",
    )


def _rate(name: str, text: str) -> Column:
    return Column(name.replace("_", " "), lambda run: run.routing_rate(name), lambda run: text)
