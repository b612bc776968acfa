"""How hard each task is for vision and language, what budget follows, and how fast each learns."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from markupsafe import Markup

from dmole.modality import MODALITIES
from dmole.report.page.axes import Axis, row_axis
from dmole.report.page.markup import Cell, Row, html, join, label, long_table, number, number_cell
from dmole.report.page.record import RunRecord
from dmole.report.page.section import Section
from dmole.report.page.svg import Plot, legend
from dmole.report.page.tables_of_run import AllocatedUnit, ModalityFactor

MOST = 60
"""Most stages that are drawn."""


def _draw(record: RunRecord) -> Markup | None:
    rows = [row for row in record.curriculum or () if row.stage]
    if not rows:
        return None
    starts = [row for row in rows if row.step is None]
    parts = [_shares(record, starts)] if any(not math.isnan(r.difficulty) for r in starts) else []
    return html('<div class="beside">{}</div>{}', join(parts), _values(record, rows))


def _stages(rows: Sequence[ModalityFactor]) -> list[tuple[int, str]]:
    return list(dict.fromkeys((row.stage, row.expert) for row in rows))[:MOST]


def _modalities(rows: Sequence[ModalityFactor]) -> list[str]:
    found = dict.fromkeys(row.modality for row in rows)
    order: dict[str, int] = {name: at for at, name in enumerate(MODALITIES)}
    return sorted(found, key=lambda name: order.get(name, len(order)))


def _shares(record: RunRecord, rows: Sequence[ModalityFactor]) -> Markup:
    """Return one bar for each stage, divided by the share of each modality in the difficulty."""
    stages, modalities = _stages(rows), _modalities(rows)
    title = "Difficulty: share of each modality in the proxy score"
    names = [f"{stage} {label(expert)}" for stage, expert in stages]
    axis = Axis("share of the proxy score (%)", 0.0, 100.0)
    height = 70 + 26 * len(stages)
    plot = Plot(title, axis, row_axis(names, "stage"), height)
    by_place = {(row.stage, row.expert, row.modality): row for row in rows}
    for at, (stage, expert) in enumerate(stages):
        task, start = record.task_of_expert(expert), 0.0
        for style, modality in enumerate(modalities):
            row = by_place.get((stage, expert, modality))
            if row is None or math.isnan(row.difficulty):
                continue
            end = start + 100.0 * row.difficulty
            tip = f"{label(expert)}, {modality}: {number(end - start)} %, {number(row.budget, 0)}"
            plot.bar((start, at), (end, at), 16, style, f"{tip} units", task)
            start = end
    return html("<div><h4>{}</h4>{}{}</div>", title, plot.markup(), legend(modalities, bars=True))


def _values(record: RunRecord, rows: Sequence[ModalityFactor]) -> Markup:
    """Return difficulty, budget, units in use and factor of each modality by stage."""
    header = ["Stage", "Expert", "Modality", "Difficulty (%)", "Budget (units)"]
    used = Counter((u.stage, u.expert, u.modality) for u in _allocated(record) if u.rank)
    lines = []
    for row in rows[: MOST * len(MODALITIES)]:
        units = used.get((row.stage, row.expert, row.modality), 0)
        step = "start of the stage" if row.step is None else f"step {row.step}"
        cells = [
            number_cell(row.stage, 0),
            Cell(label(row.expert)),
            Cell(label(row.modality)),
            number_cell(100.0 * row.difficulty),
            number_cell(row.budget, 0),
            number_cell(units, 0),
            number_cell(row.factor, 2),
            Cell(step),
        ]
        lines.append(Row(cells, record.task_of_expert(row.expert)))
    header += ["Units with experts", "Learning rate factor", "Recorded at"]
    return long_table("Difficulty, budget and factor of each modality", header, lines)


def _allocated(record: RunRecord) -> list[AllocatedUnit]:
    try:
        return record.allocation or []
    except ValueError:
        return []  # the section of the architecture says why


MODALITY = Section(
    "modalities",
    "Modalities: how hard vision and language are for each task",
    "Difficulty is the share of a modality in the summed proxy score; the harder modality receives "
    "more units. A factor above 1 raises its learning rate, one below 1 lowers it.",
    _draw,
)
