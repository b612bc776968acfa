"""The look all figures share, and turning a figure into a file or an array.

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

# Okabe and Ito's palette, told apart by people with any common color blindness; yellow left out,
# which is too light for a line on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
ACCENT = COLORS[1]
INK = "#222222"
FAINT = "#D9D9D9"
MISSING = "#F0F0F0"
DPI = 150


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure whose parts are kept from overlapping.

    Args:
        width: Inches.
        height: Inches.
    """
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def dress(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    """Give axes their words and remove what carries no information."""
    axes.set_title(title, loc="left", fontsize=11, color=INK, pad=10)
    axes.set_xlabel(x_label, fontsize=9, color=INK)
    axes.set_ylabel(y_label, fontsize=9, color=INK)
    axes.tick_params(which="both", labelsize=8.5, colors=INK, length=0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)


def line_style(position: int) -> tuple[str, str]:
    """Return color and marker of the n-th line; both change, so that neither is needed alone.

    The first 49 pairs differ.
    """
    again = position // len(COLORS)
    return COLORS[position % len(COLORS)], MARKERS[(position + again) % len(MARKERS)]


def figure_to_array(figure: Figure) -> npt.NDArray[np.uint8]:
    """Return a figure's pixels.

    Args:
        figure: A figure on the Agg canvas.

    Returns:
        RGB of shape ``(height, width, 3)``, dtype uint8.
    """
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba(), dtype=np.uint8)[..., :3].copy()


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG, whole or not at all.

    Args:
        figure: The figure.
        path: Where to write; the name must end in ``.png``.

    Raises:
        ValueError: If the name ends otherwise.
    """
    path = Path(path)
    if path.suffix != ".png":
        raise ValueError(f"a figure is saved as .png, got {path}")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
