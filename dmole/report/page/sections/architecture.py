"""Where each stage places experts on the model, with the scores that decided it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from dmole.modality import INPUT, MODALITIES
from dmole.report.page.heat import MOST, heat_table, level, stands_upright
from dmole.report.page.markup import html, join, label, of_task
from dmole.report.page.record import RunRecord
from dmole.report.page.section import Section
from dmole.report.page.tables_of_run import AllocatedUnit
from dmole.report.style import COLORS

_LIGHT = 0.45  # of the scale, so that badges and text stand out


@dataclass(frozen=True)
class _Placement:
    """The allocations of all experts.

    Args:
        record: The run.
        experts: Stage and name of each expert, in order.
        rows: Rows by unit and expert.
        highest: Highest score of a unit by expert; NaN if none was scored.
    """

    record: RunRecord
    experts: Sequence[tuple[int, str]]
    rows: Mapping[tuple[str, str], AllocatedUnit]
    highest: Mapping[str, float]


def _draw(record: RunRecord) -> Markup | None:
    rows = record.allocation
    if not rows:
        return None
    scores: dict[str, float] = {}
    for row in rows:
        scores[row.expert] = float(np.fmax(scores.get(row.expert, math.nan), row.score))
    experts = list(dict.fromkeys((row.stage, row.expert) for row in rows))
    by_place = {(row.unit, row.expert): row for row in rows}
    placement = _Placement(record, experts, by_place, scores)
    grids = []
    for modality in dict.fromkeys([*MODALITIES, *(row.modality for row in rows)]):
        units = list(dict.fromkeys(row.unit for row in rows if row.modality == modality))
        if units:
            grids.append(_grid(placement, modality, units))
    return html('<div class="beside">{}</div>', join(grids))


def _grid(placement: _Placement, modality: str, units: Sequence[str]) -> Markup:
    """Return the table of one modality: a row for each unit, a column for each expert."""
    experts = placement.experts[:MOST]
    cut = len(units) > MOST or len(placement.experts) > MOST
    more = f" (the first {MOST} units and experts)" if cut else ""
    heads = join(
        html(
            '<th scope="col"{}><span>{} {}</span></th>',
            of_task(placement.record.task_of_expert(name)),
            stage,
            label(name),
        )
        for stage, name in experts
    )
    return heat_table(
        f"{label(modality).capitalize()} units{more}",
        "unit, by stage and expert",
        heads,
        join(_row(placement, unit, experts) for unit in units[:MOST]),
        upright=stands_upright([f"{stage} {name}" for stage, name in experts]),
    )


def _row(placement: _Placement, unit: str, experts: Sequence[tuple[int, str]]) -> Markup:
    cells = join(_cell(placement, placement.rows.get((unit, name))) for _, name in experts)
    return html('<tr><th scope="row">{}</th>{}</tr>', label(unit), cells)


def _cell(placement: _Placement, row: AllocatedUnit | None) -> Markup:
    """Return a cell: the score as the background, a badge with the rank where an expert is."""
    if row is None:
        return Markup('<td class="none"></td>')
    record = placement.record
    highest = placement.highest[row.expert]
    share = row.score / highest if highest > 0 else math.nan
    kind = "plain" if math.isnan(share) else level(_LIGHT * share)
    score = "not scored" if math.isnan(row.score) else f"score {row.score:.4g}"
    size = f"{row.rank} tokens" if row.unit == INPUT else f"rank {row.rank}"
    size = size if row.rank else "no expert"
    tip = f"{label(row.unit)} in stage {row.stage}, {label(row.expert)}: {size}, {score}"
    task = record.task_of_expert(row.expert)
    color = f"b{record.style_of(task) % len(COLORS)}" if task in record.tasks else "several"
    badge = html('<b class="badge {}">{}</b>', color, row.rank) if row.rank else ""
    return html('<td class="{}"{} title="{}">{}</td>', kind, of_task(task), tip, badge)


ARCHITECTURE = Section(
    "architecture",
    "Architecture: where each stage places its expert",
    "A row is a unit: the block or linear that an expert may adapt, or the input of the language "
    "model, which takes soft prompts. A badge marks the units of the stage's expert: its number is "
    "the LoRA rank, or the number of tokens of a soft prompt; its color is the task, white for "
    "several tasks. The shade is the proxy score, an estimate of how much the unit matters for the "
    "task, darkest for the highest of the stage.",
    _draw,
)
