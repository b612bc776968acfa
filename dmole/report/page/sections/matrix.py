"""The evaluation matrix, that of the oracle, and the gap between them."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from markupsafe import Markup

from dmole.report.page.heat import Heat
from dmole.report.page.markup import html, join, label, number
from dmole.report.page.record import Array, RunRecord
from dmole.report.page.section import Section

_CORNER = "after stage"


def _draw(record: RunRecord) -> Markup | None:
    if record.scores is None:
        return None
    matrix, tasks = record.scores
    parts = [_heat(record, "Score (%)", matrix, tasks, 100.0)]
    if record.oracle is not None and not np.isnan(record.oracle).all():
        parts.append(_heat(record, "Oracle: expert of the true task (%)", record.oracle, tasks))
        gap = record.oracle - matrix
        caption = "Gap: oracle - score, what routing costs (percentage points)"
        parts.append(_heat(record, caption, gap, tasks, _highest(gap), "o"))
    return html('<div class="beside">{}</div>', join(parts))


def _highest(gap: Array) -> float:
    """Return the gap of the darkest color; small gaps stay light."""
    known = np.abs(gap[~np.isnan(gap)])
    return max(20.0, float(known.max())) if len(known) else 20.0


def _heat(
    record: RunRecord,
    caption: str,
    values: Array,
    tasks: list[str],
    high: float = 100.0,
    color: Literal["q", "o"] = "q",
) -> Markup:
    stages = [_stage_name(record, stage) for stage in range(len(values))]
    own = {
        (record.learned_at[task], column)
        for column, task in enumerate(tasks)
        if task in record.learned_at
    }

    def describe(row: int, column: int) -> str:
        value = number(float(values[row, column]), 2)
        return f"{label(tasks[column])} after stage {stages[row]}: {value}"

    heat = Heat(
        caption,
        _CORNER,
        tasks,
        stages,
        values,
        high=high if math.isfinite(high) else 100.0,
        describe=describe,
        outlined=own,
        tasks=tasks,
        color=color,
    )
    return heat.markup()


def _stage_name(record: RunRecord, stage: int) -> str:
    if stage == 0:
        return "0 (base model)"
    learned = record.tasks_of_stage
    return f"{stage} {label('+'.join(learned[stage - 1]))}" if stage <= len(learned) else str(stage)


MATRIX = Section(
    "matrix",
    "Scores: what is learned, kept and lost after each stage",
    "A row is a stage, a column a task; the outlined cell is where the task is learned. Colors "
    "that fade below an outline are forgetting. The gap is what the router loses to the oracle. "
    "Hatched cells were not evaluated.",
    _draw,
)
