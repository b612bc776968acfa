"""The style that all figures share, and conversion of a figure to a file or an array.

Figures are plain `matplotlib.figure.Figure` objects on the Agg canvas: no window, no global state.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dmole.storage.files import atomic_path

# Palette of Okabe and Ito, distinguishable with any common color blindness, without yellow, which
# is too light for a line on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
ACCENT = COLORS[1]
INK = "#222222"
FAINT = "#D9D9D9"
MISSING = "#F0F0F0"
DPI = 150


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure with a constrained layout.

    Args:
        width: Width in inches.
        height: Height in inches.
    """
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def label_axes(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    """Set title and labels of axes, and remove ticks and spines that carry no information."""
    axes.set_title(title, loc="left", fontsize=11, color=INK, pad=10)
    axes.set_xlabel(x_label, fontsize=9, color=INK)
    axes.set_ylabel(y_label, fontsize=9, color=INK)
    axes.tick_params(which="both", labelsize=8.5, colors=INK, length=0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)


def line_style(position: int) -> tuple[str, str]:
    """Return color and marker of the n-th line; either tells neighboring lines apart.

    The first 49 pairs differ.
    """
    again = position // len(COLORS)
    return COLORS[position % len(COLORS)], MARKERS[(position + again) % len(MARKERS)]


def figure_to_array(figure: Figure) -> npt.NDArray[np.uint8]:
    """Return the pixels of a figure.

    Args:
        figure: A figure on the Agg canvas.

    Returns:
        RGB of shape ``(height, width, 3)``, dtype uint8.
    """
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba(), dtype=np.uint8)[..., :3].copy()


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG atomically.

    Args:
        figure: The figure.
        path: File to write; the name must end in ``.png``.

    Raises:
        ValueError: If the name has another ending.
    """
    path = Path(path)
    if path.suffix != ".png":
        raise ValueError(f"a figure must be saved as .png, got {path}")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
