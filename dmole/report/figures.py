"""Figures of lines, bars and distributions; the grids of `heatmaps` and saving are re-exported."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from dmole.report.heatmaps import activation_heatmap, allocation_heatmap, matrix_heatmap
from dmole.report.style import (
    COLORS,
    FAINT,
    INK,
    dress,
    figure_to_array,
    line_style,
    new_figure,
    save_figure,
)

__all__ = [
    "activation_heatmap",
    "allocation_heatmap",
    "comparison_bars",
    "comparison_figure",
    "figure_to_array",
    "forgetting_curves",
    "loss_distribution",
    "matrix_heatmap",
    "save_figure",
]

Curves = Mapping[str, npt.ArrayLike]
Bars = Mapping[str, Mapping[str, tuple[float, float]]]


def loss_distribution(
    losses: Mapping[str, Sequence[float]],
    threshold: float | Mapping[str, float],
    title: str = "How well autoencoders reconstruct",
) -> Figure:
    """Draw reconstruction losses, one row a task, and the thresholds they are judged by.

    Args:
        losses: Losses (positive) by task.
        threshold: Largest loss at which the router takes a sample: one number where a single
            autoencoder saw all tasks, or one a task where each row is that task's own.
        title: Words above the figure.

    Raises:
        ValueError: If a task has no losses, or none are given.
        KeyError: If a task has no threshold.
    """
    empty = [task for task, values in losses.items() if not len(values)]
    if not losses or empty:
        raise ValueError(f"no losses to draw: {', '.join(empty) or 'no task'}")
    figure = new_figure(7.0, 1.6 + 0.5 * len(losses))
    axes = figure.subplots()
    for row, (task, given) in enumerate(losses.items()):
        values = np.asarray(given, dtype=np.float64)
        limit = threshold[task] if isinstance(threshold, Mapping) else threshold
        _spread(axes, row, values, COLORS[row % len(COLORS)])
        axes.plot([limit, limit], [row - 0.42, row + 0.42], color=INK, linewidth=1.2)
        share = 100.0 * float(np.mean(values < limit))
        text = f"{share:.0f}% below {limit:.3g}"
        place = ("axes fraction", "data")
        axes.annotate(text, (1.01, row), xycoords=place, va="center", fontsize=8.5, color=INK)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yticks(range(len(losses)), list(losses))
    axes.set_ylim(len(losses) - 0.5, -0.5)
    axes.grid(axis="x", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    dress(axes, title, "reconstruction loss, log scale  (line: threshold)", "samples of task")
    return figure


def _spread(axes: Axes, row: int, values: npt.NDArray[np.float64], color: str) -> None:
    """Draw each loss as a dot, spread in a fixed pattern, over the band of 90% and the median."""
    low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
    axes.plot([low, high], [row, row], color=color, linewidth=9, alpha=0.25, solid_capstyle="round")
    offsets = 0.22 * (np.arange(len(values)) * 0.618 % 1.0 - 0.5) * 2  # golden ratio: no clumps
    axes.plot(values, row + offsets, ".", color=color, markersize=3, alpha=0.7)
    axes.plot(middle, row, "o", color="white", markeredgecolor=color, markersize=7)


def forgetting_curves(curves: Curves, title: str) -> Figure:
    """Draw the mean score on the tasks seen so far after each stage, one line a method.

    Args:
        curves: By method, shape ``(stages,)`` for one run or ``(runs, stages)`` for several, whose
            standard deviation is shaded; percent.
        title: Words above the figure.

    Raises:
        ValueError: If there is nothing to draw.
    """
    figure = new_figure(6.8, 4.2)
    draw_forgetting(figure.subplots(), curves, title)
    return figure


def draw_forgetting(axes: Axes, curves: Curves, title: str) -> None:
    """Draw `forgetting_curves` into given axes."""
    if not curves:
        raise ValueError("no curves to draw")
    for position, (name, values) in enumerate(curves.items()):
        runs = np.atleast_2d(np.asarray(values, dtype=np.float64))
        stages = np.arange(1, runs.shape[1] + 1)
        middle = runs.mean(axis=0)
        color, marker = line_style(position)
        axes.plot(stages, middle, color=color, marker=marker, label=name, linewidth=1.8)
        end = (float(stages[-1]), float(middle[-1]))
        axes.annotate(
            f"{end[1]:.1f}",
            end,
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=INK,
        )
        if len(runs) > 1:
            spread = runs.std(axis=0, ddof=1)
            low, high = middle - spread, middle + spread
            axes.fill_between(stages, low, high, color=color, alpha=0.15, linewidth=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.margins(y=0.12)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    dress(axes, title, "stage", "mean score on seen tasks (%)")
    if len(curves) > 1:
        axes.legend(fontsize=8.5, frameon=False)


def comparison_bars(bars: Bars, title: str) -> Figure:
    """Draw figures of several methods side by side.

    Args:
        bars: By method, then by name of the figure: mean and standard deviation (NaN for a single
            run); a NaN mean is left out.
        title: Words above the figure.

    Raises:
        ValueError: If there is nothing to draw.
    """
    figure = new_figure(2.6 + 1.2 * len(bars), 4.2)
    draw_bars(figure.subplots(), bars, title)
    return figure


def draw_bars(axes: Axes, bars: Bars, title: str) -> None:
    """Draw `comparison_bars` into given axes."""
    if not bars:
        raise ValueError("no bars to draw")
    names = list(dict.fromkeys(name for row in bars.values() for name in row))
    width = 0.8 / len(names)
    for place, name in enumerate(names):
        offset = (place - (len(names) - 1) / 2) * width
        cells = [row.get(name, (math.nan, math.nan)) for row in bars.values()]
        means = [mean for mean, _ in cells]
        x = np.arange(len(cells)) + offset
        axes.bar(x, means, 0.92 * width, label=name, color=COLORS[place % len(COLORS)])
        for at, (mean, spread) in zip(x, cells, strict=True):
            _label_bar(axes, float(at), mean, spread)
    axes.axhline(0.0, color=INK, linewidth=0.8)
    axes.set_xticks(range(len(bars)), list(bars))
    axes.margins(y=0.15)
    dress(axes, title, "", "percent / percentage points")
    axes.spines["bottom"].set_visible(False)
    if len(names) > 1:  # beside the title, where no bar can reach
        corner = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.0)}
        axes.legend(fontsize=8.5, frameon=False, ncols=len(names), **corner)


def _label_bar(axes: Axes, x: float, mean: float, spread: float) -> None:
    """Write a bar's value beyond its end, and its spread as a whisker."""
    if math.isnan(mean):
        return
    reach = 0.0 if math.isnan(spread) else spread
    if reach:
        axes.errorbar(x, mean, yerr=reach, color=INK, linewidth=1.0, capsize=2.5)
    down = mean < 0
    axes.annotate(
        f"{mean:.1f}",
        (x, mean - reach if down else mean + reach),
        xytext=(0, -3 if down else 3),
        textcoords="offset points",
        ha="center",
        va="top" if down else "bottom",
        fontsize=8,
        color=INK,
    )


def comparison_figure(curves: Curves, bars: Bars) -> Figure:
    """Draw several methods: forgetting curves on the left, bars on the right.

    Args:
        curves: See `forgetting_curves`; where there are none, only the bars are drawn.
        bars: See `comparison_bars`.

    Raises:
        ValueError: If there is nothing to draw.
    """
    title = "Where each method ends"
    if not curves:
        return comparison_bars(bars, title)
    figure = new_figure(8.5 + 1.1 * len(bars), 4.4)
    left, right = figure.subplots(1, 2, width_ratios=[1.0, 0.5 + 0.25 * len(bars)])
    draw_forgetting(left, curves, "How the seen tasks fare as learning goes on")
    draw_bars(right, bars, title)
    return figure
