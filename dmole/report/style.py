"""The style that all figures share, and conversion of a figure to a file or an array.

Figures are plain `matplotlib.figure.Figure` objects on the Agg canvas: no window, no global state.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

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
PREVIEW_DPI = 75
PREVIEW_COLORS = 64

FORMATS: dict[str, dict[str, Any]] = {
    ".png": {"format": "png", "metadata": {"Software": None}},
    ".svg": {"format": "svg", "metadata": {"Date": None, "Creator": None}},
}
"""How a figure is written, by the ending of its file, without what differs between equal runs."""

FONTS = ("DejaVu Sans", "Verdana", "Arial")
"""Fonts of all texts, the first that is installed; DejaVu Sans comes with matplotlib."""

_DRAWING = {
    "font.family": "sans-serif",
    "font.sans-serif": FONTS,
    "text.hinting": "none",  # hinted, small digits get serifs and look like another font
    "svg.fonttype": "none",  # texts stay texts
    "svg.hashsalt": "dmole",  # equal figures have equal names of their parts
}
_CHARACTER = 0.087
"""Inches of a character of a title."""


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
    """Set title and labels of axes, and remove ticks and spines that carry no information.

    A title that is longer than the axes are wide gets several lines.
    """
    width = axes.bbox.width / DPI
    lines = textwrap.fill(title, max(24, int(width / _CHARACTER)))
    axes.set_title(lines, loc="left", fontsize=11, color=INK, pad=10)
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


@contextmanager
def drawing(figure: Figure) -> Iterator[None]:
    """Give all texts of a figure one font, whatever the settings of matplotlib, while it is drawn.

    Args:
        figure: The figure.
    """
    with matplotlib.rc_context(_DRAWING):
        for text in figure.findobj(Text):
            text.set_fontfamily("sans-serif")
        yield


def figure_to_array(figure: Figure, dpi: float | None = None) -> npt.NDArray[np.uint8]:
    """Return the pixels of a figure.

    Args:
        figure: A figure on the Agg canvas.
        dpi: Pixels of an inch; None keeps those of the figure.

    Returns:
        RGB of shape ``(height, width, 3)``, dtype uint8.
    """
    if dpi is not None:
        figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    with drawing(figure):
        canvas.draw()
    rgba = np.asarray(canvas.buffer_rgba(), dtype=np.uint8)
    return np.ascontiguousarray(rgba[..., :3])  # a copy


def preview(figure: Figure) -> tuple[bytes, tuple[int, int]]:
    """Return a figure as a small PNG with few colors, and its width and height in pixels.

    Args:
        figure: A figure on the Agg canvas; its resolution is lowered.
    """
    pixels = Image.fromarray(figure_to_array(figure, PREVIEW_DPI))
    content = io.BytesIO()
    pixels.quantize(PREVIEW_COLORS, dither=Image.Dither.NONE).save(content, "png")
    return content.getvalue(), pixels.size


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG or SVG atomically; equal figures give equal bytes.

    Args:
        figure: The figure.
        path: File to write; the name must end in ``.png`` or ``.svg``. Texts of an SVG are texts.

    Raises:
        ValueError: If the name has another ending.
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise ValueError(f"a figure must be saved as .png or .svg, got {path}")
    with atomic_path(path) as temporary, drawing(figure):
        figure.savefig(temporary, **FORMATS[path.suffix])
