"""The first table of a page of several runs: a row for each figure, a column for each run."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from dmole.report.columns import COLUMNS, Column
from dmole.report.page.markup import Cell, Row, number_cell, table
from dmole.report.page.record import RunRecord
from dmole.report.runs import Run


def comparison_table(records: Sequence[RunRecord]) -> Markup | None:
    """Return the table; None if no run has a figure. The best value of a row is bold.

    Args:
        records: The runs, one column each; a run that cannot be read has empty cells.
    """
    runs = [_run(record) for record in records]
    rows = [row for column in COLUMNS if (row := _row(column, runs)) is not None]
    header = ["Figure", *(record.name for record in records), "Definition"]
    return table("The runs side by side; bold: best of the row", header, rows) if rows else None


def _run(record: RunRecord) -> Run | None:
    try:
        return record.run
    except (ValueError, OSError):
        return None  # the summary of the run says why


def _row(column: Column, runs: Sequence[Run | None]) -> Row | None:
    values = [math.nan if run is None else column.read(run) for run in runs]
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return None
    digits = 0 if column.whole else 1
    best = {"high": max(known), "low": min(known)}.get(column.better or "")
    cells = [number_cell(value, digits) for value in values]
    if best is not None:
        shown = number_cell(best, digits).content
        cells = [
            Cell(cell.content, cell.value, "number best") if cell.content == shown else cell
            for cell in cells
        ]
    texts = (column.define(run) for run in runs if run is not None)
    definition = next((text for text in texts if text), "")
    return Row([Cell(column.name), *cells, Cell(str(definition), kind="text")])
