"""The picture of docs/scores.md: where an expert helps, and where two scores place it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from dmole.allocation.budget import budget_modality
from dmole.report.style import COLORS, INK, MARKERS, label_axes, new_figure
from experiments.block_scores import PUBLISHED
from experiments.score_tables import Result

SHOWN = (PUBLISHED, "delta")
"""Scores that are drawn, those of them that were measured."""
COLUMNS = 3
MOST = 12
"""Blocks that are all named below a panel."""
BARS = {"vision": COLORS[4], "language": COLORS[5]}


def gains_figure(results: Sequence[Result]) -> Figure:
    """Draw a panel a task: the value with an expert in each block alone, and scores as lines.

    Args:
        results: What was found, at least once; the seeds of a task are averaged. Each score is
            drawn relative to its largest value.
    """
    tasks = [*dict.fromkeys(result.task for result in results)]
    rows = math.ceil(len(tasks) / COLUMNS)
    figure = new_figure(3.6 * COLUMNS, 2.6 * rows + 0.4)
    panels = [*figure.subplots(rows, COLUMNS, squeeze=False, sharey=True).flat]
    for axes in panels[len(tasks) :]:
        axes.set_axis_off()
    for axes, task in zip(panels, tasks, strict=False):
        several = [result for result in results if result.task == task]
        units = several[0].units
        for modality, color in BARS.items():
            inside = [i for i, u in enumerate(units) if budget_modality(u.modality) == modality]
            values = [np.mean([r.values[units[i].name,] for r in several]) for i in inside]
            axes.bar(inside, values, color=color, label=f"expert in {modality}")
        for name, marker in zip(SHOWN, MARKERS, strict=False):
            if name in several[0].scores:
                means = [np.mean([r.scores[name][unit.name] for r in several]) for unit in units]
                heights = [100 * mean / max(means) for mean in means]
                axes.plot(heights, color=INK, marker=marker, ls=":", label=f"score {name}")
        step = 1 if len(units) <= MOST else 3
        shown = range(0, len(units), step)
        axes.set_xticks(shown, [_short(units[index].name) for index in shown])
        label_axes(axes, task, "", "%")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def _short(name: str) -> str:
    """Return the name of a block with the first letter of its tower."""
    tower, _, number = name.partition(".")
    return f"{tower[:1].upper()}{number}"
