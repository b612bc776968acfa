"""Methods side by side: mean scores on the seen tasks over the stages, and final scores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dmole.report.labels import label_ends, plain
from dmole.report.style import COLORS, FAINT, INK, label_axes, line_style, new_figure

Curves = Mapping[str, npt.ArrayLike]
Bars = Mapping[str, Mapping[str, tuple[float, float]]]

FEW = 7
"""Largest number of methods for which spreads are shaded and bars are vertical."""


def forgetting_curves(curves: Curves, title: str) -> Figure:
    """Draw the mean score on the tasks seen so far after each stage, one line per method.

    Args:
        curves: Scores in percent by method, of shape ``(stages,)`` for one run or
            ``(runs, stages)`` for several. The standard deviation over runs is shaded if there are
            few methods.
        title: Title of the figure.

    Raises:
        ValueError: If there are no curves.
    """
    height = _height(len(curves))
    figure = new_figure(6.8 if len(curves) <= FEW else 9.0, height)
    draw_forgetting(figure.subplots(), curves, title, height)
    return figure


def draw_forgetting(axes: Axes, curves: Curves, title: str, height: float = 4.2) -> None:
    """Draw `forgetting_curves` into axes of a figure whose height is given in inches.

    A method with a single stage is drawn as a dotted horizontal line if other methods have more.
    """
    if not curves:
        raise ValueError("no curves to draw")
    few = len(curves) <= FEW
    longest = max(np.atleast_2d(np.asarray(values)).shape[1] for values in curves.values())
    ends = []
    for position, (name, values) in enumerate(curves.items()):
        runs = np.atleast_2d(np.asarray(values, dtype=np.float64))
        across = runs.shape[1] == 1 < longest
        runs = np.repeat(runs, longest, axis=1) if across else runs
        middle = runs.mean(axis=0)
        color, marker = line_style(position)
        look: dict[str, Any] = {"linestyle": ":", "marker": ""} if across else {"marker": marker}
        stages = np.arange(1, runs.shape[1] + 1)
        width = 1.8 if few else 1.2
        axes.plot(stages, middle, color=color, linewidth=width, **look)
        if few and len(runs) > 1:
            reach = runs.std(axis=0, ddof=1)
            low, high = middle - reach, middle + reach
            axes.fill_between(stages, low, high, color=color, alpha=0.15, linewidth=0)
        text = f"{middle[-1]:.1f}  {plain(name)}"  # a legend would cover the lines
        ends.append((float(stages[-1]), float(middle[-1]), text, color))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.margins(y=0.12)
    axes.set_ylim(axes.get_ylim())
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    label_axes(axes, title, "stage", "mean score on seen tasks (%)")
    scored = [end for end in ends if not math.isnan(end[1])]
    label_ends(axes, scored, 72 * (height - 1.0), 8 if few else 7.5)


def comparison_bars(bars: Bars, title: str) -> Figure:
    """Draw figures of several methods side by side: vertical bars for few methods, else horizontal.

    Args:
        bars: By method, then by name of the figure: mean and standard deviation (NaN for a single
            run). A NaN mean has no bar.
        title: Title of the figure.

    Raises:
        ValueError: If there are no bars.
    """
    few = len(bars) <= FEW
    figure = new_figure(2.6 + 1.2 * len(bars) if few else 8.0, _height(len(bars)))
    draw_bars(figure.subplots(), bars, title)
    return figure


def draw_bars(axes: Axes, bars: Bars, title: str) -> None:
    """Draw `comparison_bars` into axes."""
    if not bars:
        raise ValueError("no bars to draw")
    upright = len(bars) <= FEW
    names = list(dict.fromkeys(name for row in bars.values() for name in row))
    width = 0.8 / len(names)
    for series, name in enumerate(names):
        offset = (series - (len(names) - 1) / 2) * width
        cells = [row.get(name, (math.nan, math.nan)) for row in bars.values()]
        draw = axes.bar if upright else axes.barh
        positions = np.arange(len(cells)) + offset
        color = COLORS[series % len(COLORS)]
        draw(positions, [mean for mean, _ in cells], 0.92 * width, label=name, color=color)
        for position, (mean, reach) in zip(positions, cells, strict=True):
            _label_bar(axes, float(position), mean, reach, upright=upright)
    methods = [plain(name) for name in bars]
    if upright:
        axes.axhline(0.0, color=INK, linewidth=0.8)
        axes.set_xticks(range(len(bars)), methods)
        axes.margins(y=0.15)
        label_axes(axes, title, "", "percent / percentage points")
    else:
        axes.axvline(0.0, color=INK, linewidth=0.8)
        axes.set_yticks(range(len(bars)), methods)
        axes.set_ylim(len(bars) - 0.4, -0.6)
        axes.margins(x=0.15)
        label_axes(axes, title, "percent / percentage points", "")
    axes.spines["bottom" if upright else "left"].set_visible(False)
    if len(names) > 1:  # beside the title, where no bar can reach
        corner = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.0)}
        axes.legend(fontsize=8.5, frameon=False, ncols=len(names), **corner)


def _label_bar(axes: Axes, position: float, mean: float, reach: float, *, upright: bool) -> None:
    """Write the value of a bar beyond its end, and draw its spread as a whisker."""
    if math.isnan(mean):
        return
    reach = 0.0 if math.isnan(reach) else reach
    point = (position, mean) if upright else (mean, position)
    if reach:
        whisker: dict[str, Any] = {"yerr" if upright else "xerr": reach}
        axes.errorbar(*point, **whisker, color=INK, linewidth=1.0, capsize=2.5 if upright else 1.5)
    sign = -1 if mean < 0 else 1
    end = mean + sign * reach
    beyond = ("top", "bottom") if upright else ("right", "left")
    align: dict[str, Any] = {"ha": "center", "va": beyond[sign > 0]}
    if not upright:
        align = {"ha": beyond[sign > 0], "va": "center"}
    axes.annotate(
        f"{mean:.1f}",
        (position, end) if upright else (end, position),
        xytext=(0, 3 * sign) if upright else (3 * sign, 0),
        textcoords="offset points",
        fontsize=8 if upright else 7,
        color=INK,
        **align,
    )


def comparison_figure(curves: Curves, bars: Bars) -> Figure:
    """Draw several methods: forgetting curves on the left, bars on the right.

    Args:
        curves: See `forgetting_curves`; if empty, only the bars are drawn.
        bars: See `comparison_bars`.

    Raises:
        ValueError: If there are no bars.
    """
    title = "Final scores of each method"
    if not curves:
        return comparison_bars(bars, title)
    few = len(bars) <= FEW
    height = 4.4 if few else _height(len(bars))
    figure = new_figure(8.5 + 1.1 * len(bars) if few else 15.0, height)
    widths = [1.0, 0.5 + 0.25 * len(bars) if few else 1.0]
    left, right = figure.subplots(1, 2, width_ratios=widths)
    draw_forgetting(left, curves, "Mean score on the seen tasks after each stage", height)
    draw_bars(right, bars, title)
    return figure


def _height(methods: int) -> float:
    """Return the height in inches of a figure of so many methods."""
    return 4.2 if methods <= FEW else max(4.4, 1.2 + 0.32 * methods)
