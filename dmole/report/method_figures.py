"""Figures of a comparison: the scores of each method over the stages, and final score by cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from dmole.metrics.matrix import Array, learning_stages
from dmole.metrics.seen_tasks import seen_means
from dmole.report.columns import Group
from dmole.report.comparison_figures import comparison_figure
from dmole.report.grids import Grid, Pair
from dmole.report.labels import label_points, plain
from dmole.report.notes import Notes
from dmole.report.runs import Run
from dmole.report.style import COLORS, FAINT, INK, label_axes, line_style, new_figure

PARAMETERS = "trainable parameters per task"


@dataclass(frozen=True)
class TaskHistory:
    """Scores of one method over the stages.

    Args:
        scores: Mean evaluation matrix over runs, ``(stages + 1, tasks)``, percent.
        learned_at: Stage that learns each task, ``(tasks,)``; beyond the last stage if none does.
        seen: Mean score on the tasks seen so far, ``(stages,)``.
    """

    scores: Array
    learned_at: Array
    seen: Array


def method_figures(groups: Group, grid: Grid, notes: Notes) -> dict[str, Figure | None]:
    """Return the figures of a comparison by file name, None for a figure without content."""
    names = {method: method + notes.sign(method) for method in groups}
    curves = {names[method]: np.stack(c) for method, runs in groups.items() if (c := _curves(runs))}
    bars = {
        names[method]: {name: row[name] for name in ("Last", "BWT")}
        for method, row in grid.rows.items()
    }
    points = {
        names[method]: (row[PARAMETERS], row["Last"])
        for method, row in grid.rows.items()
        if not math.isnan(row["Last"][0] + row[PARAMETERS][0])
    }
    hollow = {names[method] for method in groups if notes.sign(method)}
    histories = {names[method]: history_of(runs) for method, runs in groups.items()}
    tasks = next(iter(groups.values()))[0].task_names
    drawable = any(_trains(cost) for cost, _ in points.values())
    return {
        "comparison.png": comparison_figure(curves, bars),
        "forgetting.png": task_panels(histories, tasks),
        "accuracy_parameters.png": accuracy_figure(points, hollow) if drawable else None,
    }


def _curves(runs: Sequence[Run]) -> list[Array]:
    """Return the mean scores on seen tasks of each run that has stages."""
    return [seen_means(run.matrix, run.task_of_stage) for run in runs if len(run.matrix) > 1]


def history_of(runs: Sequence[Run]) -> TaskHistory:
    """Return the mean over runs of one method; all runs have the same stages."""
    scores = np.mean([run.matrix for run in runs], axis=0)
    first = runs[0]
    stages = learning_stages(len(scores) - 1, scores.shape[1], first.task_of_stage)
    return TaskHistory(scores, stages.astype(np.float64), seen_means(scores, first.task_of_stage))


def task_panels(histories: Mapping[str, TaskHistory], tasks: Sequence[str]) -> Figure:
    """Draw the score of each task over the stages, one panel per method.

    Args:
        histories: Scores by method.
        tasks: Name of each column of the matrices.

    Raises:
        ValueError: If there is no method.
    """
    if not histories:
        raise ValueError("no methods to draw")
    columns = min(5, math.ceil(math.sqrt(len(histories))))
    rows = math.ceil(len(histories) / columns)
    figure = new_figure(max(6.0, 1.0 + 2.7 * columns), 1.4 + 2.1 * rows)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for position, axes in enumerate(grid.flat):
        if position >= len(histories):
            axes.set_visible(False)
    for (name, history), axes in zip(histories.items(), grid.flat, strict=False):
        _draw_history(axes, history, tasks)
        label_axes(axes, "", "", "")
        axes.set_title(plain(name), loc="left", fontsize=9, color=INK, pad=4)
    for position in range(len(histories) - columns, len(histories)):
        if position >= 0:  # the lowest panel of each column
            grid.flat[position].tick_params(labelbottom=True)
            grid.flat[position].set_xlabel("stage", fontsize=9, color=INK)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=8.5, frameon=False)
    figure.suptitle(
        "Each task's score after each stage  (dashed: before it is learned)",
        x=0.01, ha="left", fontsize=11, color=INK,
    )  # fmt: skip
    figure.supylabel("score (%)", fontsize=9, color=INK)
    return figure


def _draw_history(axes: Axes, history: TaskHistory, tasks: Sequence[str]) -> None:
    """Draw the tasks of a method: thin until the stage that learns them, which is marked."""
    stages = np.arange(len(history.scores))
    for column, task in enumerate(tasks):
        color, marker = line_style(column)
        values, learned_at = history.scores[:, column], int(history.learned_at[column])
        before = slice(0, learned_at + 1)
        axes.plot(stages[before], values[before], "--", color=color, linewidth=0.8, alpha=0.7)
        axes.plot(stages[learned_at:], values[learned_at:], color=color, linewidth=1.5)
        start = min(learned_at, int(stages[-1]))
        axes.plot(start, values[start], marker, color=color, markersize=4.5)
        axes.plot([], [], color=color, marker=marker, markersize=4.5, label=plain(task))
    axes.plot(stages[1:], history.seen, color="#777777", linewidth=3.2, alpha=0.45, zorder=1)
    axes.plot([], [], color="#777777", linewidth=3.2, alpha=0.45, label="mean of seen tasks")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)


def accuracy_figure(points: Mapping[str, tuple[Pair, Pair]], hollow: set[str]) -> Figure:
    """Draw the final score of the methods by their trainable parameters.

    Args:
        points: By method, trainable parameters per task and Last, each with its standard
            deviation. A method that trains nothing is drawn as a dotted line.
        hollow: Methods whose markers are hollow, because they were given more than the others.

    Raises:
        ValueError: If no method trains parameters.
    """
    trained = {name: pair for name, pair in points.items() if _trains(pair[0])}
    if not trained:
        raise ValueError("no method with trainable parameters to draw")
    figure = new_figure(*((7.0, 4.6) if len(points) <= 8 else (10.5, 7.0)))
    axes = figure.subplots()
    for name, ((x, x_reach), (y, y_reach)) in trained.items():
        face = "white" if name in hollow else COLORS[0]
        look: dict[str, Any] = {
            "fmt": "o",
            "markersize": 6,
            "markerfacecolor": face,
            "color": COLORS[0],
        }
        whiskers: dict[str, Any] = {
            "xerr": _bar(x_reach),
            "yerr": _bar(y_reach),
            "ecolor": "#8FB8D8",
        }
        axes.errorbar(x, y, **look, **whiskers, elinewidth=1.0, capsize=2, zorder=3)
    _draw_untrained(axes, {n: y for n, (_, (y, _)) in points.items() if n not in trained})
    _scale_costs(axes, [x for (x, _), _ in trained.values()])
    axes.margins(x=0.18, y=0.12)
    axes.grid(color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    label_axes(axes, "Final score by trainable parameters", PARAMETERS, "Last (%)")
    figure.draw_without_rendering()  # fixes the layout, so that pixel coordinates are final
    markers = {name: (x, y) for name, ((x, _), (y, _)) in trained.items()}
    label_points(axes, markers, _blocked(axes, trained), 8 if len(points) <= 8 else 7.5)
    return figure


def _draw_untrained(axes: Axes, levels: Mapping[str, float]) -> None:
    """Draw a horizontal line for each method that trains nothing."""
    for name, y in levels.items():
        axes.axhline(y, color=INK, linestyle=":", linewidth=1.0)
        axes.annotate(
            f"{plain(name)}: trains nothing",
            (1.0, y),
            xytext=(-2, 3),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            fontsize=7.5,
            color=INK,
        )


def _scale_costs(axes: Axes, costs: Sequence[float]) -> None:
    """Make the axis of parameters logarithmic if the numbers differ by a factor above 5."""
    if max(costs) > 5 * min(costs):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter("{x:,.0f}")


def _blocked(axes: Axes, points: Mapping[str, tuple[Pair, Pair]]) -> Array:
    """Return the boxes in pixels of markers, error bars and texts, ``(N, 4)``."""
    boxes = [np.array(text.get_window_extent().extents) for text in axes.texts]
    for (x, x_reach), (y, y_reach) in points.values():
        reach = np.nan_to_num([x_reach, y_reach])
        center = axes.transData.transform((x, y))
        boxes.append(np.concatenate([center - 9, center + 9]))
        for direction in ((1.0, 0.0), (0.0, 1.0)):
            ends = np.array([x, y]) + np.outer([-1, 1], np.array(direction) * reach)
            ends = axes.transData.transform(np.maximum(ends, [x * 1e-3, -math.inf]))  # log scale
            boxes.append(np.concatenate([ends[0] - 3, ends[1] + 3]))
    return np.stack(boxes)


def _trains(cost: Pair) -> bool:
    return cost[0] > 0


def _bar(reach: float) -> float | None:
    return None if math.isnan(reach) or not reach else reach
