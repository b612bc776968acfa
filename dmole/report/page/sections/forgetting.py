"""Scores of each task over the stages, and their mean over the tasks seen so far."""

from __future__ import annotations

import math

import numpy as np
from markupsafe import Markup

from dmole.report.page.axes import score_axis, stage_axis
from dmole.report.page.markup import html, label, number
from dmole.report.page.record import Array, RunRecord
from dmole.report.page.section import Section
from dmole.report.page.svg import Plot, legend

MOST = 60
"""Most tasks with a line of their own."""


def _draw(record: RunRecord) -> Markup | None:
    if record.scores is None or len(record.scores[0]) < 3 or not record.learned_at:
        return None
    return html('<div class="beside">{}{}</div>', _of_tasks(record), _of_means(record))


def _of_tasks(record: RunRecord) -> Markup:
    """Return one line for each learned task, from the stage that learns it."""
    matrix, names = _known(record)
    tasks = [task for task in names if task in record.learned_at][:MOST]
    title = "Score of each task from the stage that learns it"
    plot = Plot(title, stage_axis(len(matrix) - 1), score_axis(matrix))
    for task in tasks:
        column, first = names.index(task), record.learned_at[task]
        stages = range(first, len(matrix))
        points = [(float(stage), float(matrix[stage, column])) for stage in stages]
        tips = [f"{label(task)} after stage {stage:.0f}: {number(y)} %" for stage, y in points]
        plot.line(points, tips, record.style_of(task), task)
    head = html("<h4>{}</h4>", title)
    key = legend(tasks, tasks, styles=[record.style_of(task) for task in tasks])
    return html("<div>{}{}{}</div>", head, plot.markup(), key)


def _of_means(record: RunRecord) -> Markup:
    """Return the mean over the tasks seen so far, and that of the oracle."""
    matrix, names = _known(record)
    title = "Mean score over the tasks learned so far"
    curves = {"routed": matrix}
    if record.oracle is not None and not np.isnan(record.oracle).all():
        curves["oracle: expert of the true task"] = record.oracle
    score = score_axis(np.concatenate(list(curves.values())))
    plot = Plot(title, stage_axis(len(matrix) - 1), score)
    for style, (name, scores) in enumerate(curves.items()):
        points = []
        for stage in range(1, len(scores)):
            seen = [at for at, task in enumerate(names) if record.learned_at.get(task, 0)]
            seen = [at for at in seen if record.learned_at[names[at]] <= stage]
            points.append((float(stage), float(np.mean(scores[stage, seen])) if seen else math.nan))
        tips = [f"{name}, after stage {stage:.0f}: {number(y)} %" for stage, y in points]
        plot.line(points, tips, style)
    head = html("<h4>{}</h4>", title)
    return html("<div>{}{}{}</div>", head, plot.markup(), legend(list(curves)))


def _known(record: RunRecord) -> tuple[Array, list[str]]:
    assert record.scores is not None  # checked by the caller
    return record.scores


FORGETTING = Section(
    "forgetting",
    "Forgetting: does each task keep its score after later stages?",
    "Each line of the first chart begins at the stage that learns its task; where it falls, the "
    "task is forgotten. In the second one, the distance from the routed mean to that of the oracle "
    "is what a router without errors would add.",
    _draw,
)
