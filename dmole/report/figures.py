"""The figure of losses; re-exports `heatmaps`, `comparison_figures` and `save_figure`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from dmole.report.comparison_figures import (
    comparison_bars,
    comparison_figure,
    forgetting_curves,
)
from dmole.report.heatmaps import activation_heatmap, allocation_heatmap, matrix_heatmap
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


def loss_distribution(
    losses: Mapping[str, Sequence[float]],
    threshold: float | Mapping[str, float],
    title: str = "Reconstruction losses of the autoencoders",
) -> Figure:
    """Draw the reconstruction losses of the router, one row per task, with the thresholds.

    Args:
        losses: Losses (positive) by task.
        threshold: Largest loss at which the router accepts a sample: one number if one autoencoder
            reconstructed the samples of all tasks, or one per task if each task has an autoencoder.
        title: Title of the figure.

    Raises:
        ValueError: If there is no task, or a task has no losses.
        KeyError: If a task has no threshold.
    """
    empty = [task for task, values in losses.items() if not len(values)]
    if not losses or empty:
        raise ValueError(f"no losses to draw: {', '.join(empty) or 'no task'}")
    figure = new_figure(7.0, 1.6 + 0.5 * len(losses))
    axes = figure.subplots()
    for row, (task, task_losses) in enumerate(losses.items()):
        values = np.asarray(task_losses, dtype=np.float64)
        limit = threshold[task] if isinstance(threshold, Mapping) else threshold
        _spread(axes, row, values, COLORS[row % len(COLORS)])
        axes.plot([limit, limit], [row - 0.42, row + 0.42], color=INK, linewidth=1.2)
        share = 100.0 * float(np.mean(values < limit))
        text = f"{share:.0f}% below {limit:.3g}"
        frame = ("axes fraction", "data")
        axes.annotate(text, (1.01, row), xycoords=frame, va="center", fontsize=8.5, color=INK)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yticks(range(len(losses)), list(losses))
    axes.set_ylim(len(losses) - 0.5, -0.5)
    axes.grid(axis="x", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    label_axes(axes, title, "reconstruction loss, log scale  (line: threshold)", "task")
    return figure


def _spread(axes: Axes, row: int, values: npt.NDArray[np.float64], color: str) -> None:
    """Draw each loss as a dot, offset in a fixed pattern, over the 90% interval and the median."""
    low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
    axes.plot([low, high], [row, row], color=color, linewidth=9, alpha=0.25, solid_capstyle="round")
    offsets = 0.22 * (np.arange(len(values)) * 0.618 % 1.0 - 0.5) * 2  # golden ratio: even spread
    axes.plot(values, row + offsets, ".", color=color, markersize=3, alpha=0.7)
    axes.plot(middle, row, "o", color="white", markeredgecolor=color, markersize=7)
