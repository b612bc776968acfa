"""The figure of acceptance; re-exports `heatmaps`, `comparison_figures` and `save_figure`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from dmole.report.comparison_figures import (
    comparison_bars,
    comparison_figure,
    forgetting_curves,
)
from dmole.report.heatmaps import activation_heatmap, allocation_heatmap, matrix_heatmap
from dmole.report.labels import plain
from dmole.report.style import (
    COLORS,
    FAINT,
    INK,
    figure_to_array,
    label_axes,
    new_figure,
    save_figure,
)

__all__ = [
    "acceptance_figure",
    "activation_heatmap",
    "allocation_heatmap",
    "comparison_bars",
    "comparison_figure",
    "figure_to_array",
    "forgetting_curves",
    "matrix_heatmap",
    "save_figure",
]


MOST_EXPERTS = 40
"""Rows of the figure of acceptance; of more experts every n-th is drawn."""

_WIDE = 300
"""Ratio of the ends of a logarithmic axis above which only powers of ten are labeled."""


def acceptance_figure(
    ratios: Mapping[str, tuple[Sequence[float], Sequence[float]]], title: str
) -> Figure:
    """Draw how well each autoencoder tells the samples of its tasks from all others.

    Args:
        ratios: By expert, the losses of the samples of its own tasks and of all others, each
            divided by the threshold of the expert: below 1 a sample is accepted. Positive.
        title: Title of the figure.

    Raises:
        ValueError: If there is no expert.
    """
    if not ratios:
        raise ValueError("no losses to draw: no expert")
    every = math.ceil(len(ratios) / MOST_EXPERTS)
    experts = list(ratios)[::every]
    figure = new_figure(7.0, 1.6 + 0.3 * len(experts))
    axes = figure.subplots()
    for row, expert in enumerate(experts):
        for side, values in enumerate(ratios[expert]):
            if len(values):
                low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
                color, y = COLORS[side], row - 0.15 + 0.3 * side
                axes.plot([low, high], [y, y], color=color, linewidth=3.5, alpha=0.45)
                axes.plot(middle, y, "o", color=color, markersize=4)
        shares = (
            f"{100 * np.mean(np.less(v, 1.0)):.0f}%" if len(v) else "-" for v in ratios[expert]
        )
        text, frame = " / ".join(shares), ("axes fraction", "data")
        axes.annotate(text, (1.01, row), xycoords=frame, va="center", fontsize=8, color=INK)
    axes.axvline(1.0, color=INK, linewidth=1.2)
    _logarithmic(axes)
    axes.set_yticks(range(len(experts)), [plain(name) for name in experts])
    axes.set_ylim(len(experts) - 0.5, -0.5)
    note = (
        "loss / threshold: 5th to 95th percentile, point at the median\n"
        "blue: own tasks, orange: others; at the right: accepted of own / others"
    )
    label_axes(axes, title, note, "autoencoder of expert")
    return figure


def _logarithmic(axes: Axes) -> None:
    """Make the horizontal axis logarithmic, with few labels and a grid."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    wide = high / low > _WIDE
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(axis="x", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
