"""The loss of each autoencoder on samples of its own task and of others, against its threshold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from dmole.report.page.axes import Axis, row_axis
from dmole.report.page.markup import Cell, Row, details, html, join, label, note, number_cell, table
from dmole.report.page.record import Array, RunRecord
from dmole.report.page.samples import Rerouted
from dmole.report.page.section import Section
from dmole.report.page.svg import Plot, legend

QUANTILES = (0.05, 0.5, 0.95)

MOST = 60
"""Most autoencoders that are drawn."""

_SIDES = ("samples of its own task", "samples of all other tasks")
_LEAST = 1e-3  # of the axis
_LARGEST = 1e6  # of a loss relative to its threshold


def _draw(record: RunRecord) -> Markup | None:
    again = record.rerouted
    if again is None:
        return None
    problems = join(note(f"Not shown: {line}") for line in again.problems[:_SHOWN])
    if again.routing is None or not again.tasks:
        return problems
    found = [_ratios(again, column) for column in range(len(again.routing.fitted))][:MOST]
    names = again.routing.fitted[:MOST]
    title = "Loss relative to the threshold: 5th to 95th percentile, point at the median"
    return join(
        [
            html("<h4>{}</h4>", title),
            _plot(record, title, names, found),
            legend(_SIDES),
            details("Values as a table", _table(record, names, found)),
            problems,
        ]
    )


_SHOWN = 3  # problems


def _ratios(again: Rerouted, column: int) -> tuple[Array, Array]:
    """Return the losses of own and of other samples relative to the threshold."""
    assert again.routing is not None  # checked by the caller
    expert, threshold = again.routing.fitted[column], again.routing.thresholds[column]
    sides: tuple[list[Array], list[Array]] = ([], [])
    for task in again.tasks.values():
        ratio = task.losses[:, column].astype(np.float64) / threshold
        sides[expert not in task.own].append(np.minimum(ratio, _LARGEST))
    own, other = (np.concatenate([np.empty(0), *side]) for side in sides)
    return own, other


def _plot(
    record: RunRecord, title: str, names: Sequence[str], found: Sequence[tuple[Array, Array]]
) -> Markup:
    values = np.concatenate([each for pair in found for each in pair])
    low, high = min(0.5, max(_LEAST, float(values.min()))), max(2.0, float(values.max()))
    x = Axis("loss / threshold: accepted to the left of 1", low, high, log=True)
    plot = Plot(title, x, row_axis(names, "autoencoder"), height=90 + 28 * len(names))
    plot.upright(1.0, "threshold: smaller losses are accepted")
    for row, (name, sides) in enumerate(zip(names, found, strict=True)):
        for style, (side, ratios) in enumerate(zip(_SIDES, sides, strict=True)):
            if len(ratios):
                tip = f"{label(name)}, {side}: {_described(ratios)}"
                marks = _quantiles(ratios)
                task = record.task_of_expert(name)
                plot.quantiles(row + (style - 0.5) * 0.36, marks, style, tip, task)
    return plot.markup()


def _quantiles(ratios: Array) -> tuple[float, float, float]:
    low, middle, high = (float(value) for value in np.quantile(ratios, QUANTILES))
    return low, middle, high


def _accepted(ratios: Array) -> float:
    """Return the share of losses below the threshold in percent."""
    return 100.0 * float(np.mean(ratios < 1.0)) if len(ratios) else float("nan")


def _described(ratios: Array) -> str:
    low, middle, high = _quantiles(ratios)
    return (
        f"median {middle:.3g}, 5 % to 95 % {low:.3g} to {high:.3g} times the threshold; "
        f"{_accepted(ratios):.1f} % of {len(ratios)} accepted"
    )


def _table(record: RunRecord, names: Sequence[str], found: Sequence[tuple[Array, Array]]) -> Markup:
    header = ["Autoencoder of"]
    header += [f"{what}, {side}" for side in ("own", "other") for what in _COLUMNS]
    rows = []
    for name, sides in zip(names, found, strict=True):
        cells = [Cell(label(name))]
        for ratios in sides:
            marks = _quantiles(ratios) if len(ratios) else (float("nan"),) * 3
            cells += [number_cell(_accepted(ratios)), *(number_cell(mark, 3) for mark in marks)]
        rows.append(Row(cells, record.task_of_expert(name)))
    return table("Loss relative to the threshold of the test samples", header, rows)


_COLUMNS = ("accepted (%)", "5 %", "median", "95 %")


LOSSES = Section(
    "losses",
    "Autoencoders: do they tell their own task from the others?",
    "Each expert has an autoencoder that accepts a sample whose loss is below its threshold (the "
    "dashed line). Blue ranges should lie left of it, orange ones right of it: blue to its right "
    "is rejected by its own expert, orange to its left can be answered by a wrong one.",
    _draw,
    costly=True,
)
