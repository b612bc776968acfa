"""The first table of a page of several runs: a row for each figure, a column for each run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from markupsafe import Markup

from dmole.metrics.evaluated import statement
from dmole.report.columns import COLUMNS, Column
from dmole.report.grids import best_of
from dmole.report.identity import advantages
from dmole.report.page.markup import Cell, Row, join, note, number, table
from dmole.report.page.record import RunRecord
from dmole.report.runs import Run

_Runs = Mapping[str, Run | None]
"""Runs by name; None if a run has no scores or cannot be read."""


def comparison_table(records: Sequence[RunRecord]) -> Markup | None:
    """Return the table, with remarks on what the runs do not share; None if no run has a figure.

    The best value of a row is bold, among the runs without an advantage over a continual learner.

    Args:
        records: The runs, one column each; a run that cannot be read has empty cells.
    """
    runs = {record.name: _run(record) for record in records}
    rows = [row for column in COLUMNS if (row := _row(column, runs)) is not None]
    if not rows:
        return None
    remarks = join(map(note, _remarks(runs)))
    return table("Bold: the best of the row", ["Metric", *runs, "Definition"], rows) + remarks


def _run(record: RunRecord) -> Run | None:
    try:
        return record.run
    except (ValueError, OSError):
        return None  # the summary of the run says why


def _row(column: Column, runs: _Runs) -> Row | None:
    known = {name: run for name, run in runs.items() if run is not None}
    values = {name: column.read(run) for name, run in known.items()}
    if all(map(math.isnan, values.values())):
        return None
    apart = [name for name, run in known.items() if advantages(run)]
    best = best_of(values, column.better, apart) if column.better else set()
    cells = [
        Cell(
            number(values.get(name, math.nan), 0 if column.whole else 2),
            values.get(name),
            "number best" if name in best else "number",
        )
        for name in runs
    ]
    texts = (column.define(run) for run in known.values())
    definition = next((text for text in texts if text), "")
    return Row([Cell(column.name), *cells, Cell(str(definition), kind="text")])


def _remarks(runs: _Runs) -> Iterator[str]:
    known = {name: run for name, run in runs.items() if run is not None}
    for name, run in known.items():
        if given := advantages(run):
            yield f"{name} is never bold: {', '.join(given)}."
    if len({frozenset(run.task_names) for run in known.values()}) > 1:
        yield "The runs have different tasks, so their metrics cannot be compared."
    if len({str(run.subsample) for run in known.values()}) > 1:
        yield "The runs are scored on different parts of the test samples (eval_limit)."
    for name, run in known.items():
        if text := statement(run.metrics):
            yield f"{name}: {text}"
