"""Clouds of points in the plane, one color and mark for each task."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from markupsafe import Markup

from dmole.report.page.markup import html, join, label, of_task
from dmole.report.page.record import Array
from dmole.report.style import COLORS, MARKERS

SIZE = 460
"""Width and height of a drawing in pixels."""

_EDGE = 12

_MARKS: Mapping[str, str] = {
    "o": "m-3,0a3,3 0 1 0 6,0a3,3 0 1 0-6,0z",
    "s": "m-3-3h6v6h-6z",
    "^": "m0-3l3,6h-6z",
    "D": "m0-4l4,4l-4,4l-4-4z",
    "v": "m0,3l3-6h-6z",
    "P": "m-3,0h6m-3-3v6",
    "X": "m-3-3l6,6m0-6l-6,6",
}
"""Path of a mark from its point."""


def cloud(title: str, points: Mapping[str, Array], styles: Mapping[str, int]) -> Markup:
    """Return a drawing of points, one group for each task.

    Args:
        title: What the drawing shows, for readers who do not see it.
        points: Coordinates of the samples of each task, ``(samples, 2)``.
        styles: Number of the style of each task.
    """
    joined = np.concatenate(list(points.values()))
    low, high = joined.min(axis=0), joined.max(axis=0)
    scale = (SIZE - 2 * _EDGE) / max(float((high - low).max()), 1e-12)
    middle = (low + high) / 2
    groups = join(
        _group(task, (each - middle) * scale + SIZE / 2, styles[task])
        for task, each in points.items()
    )
    return html(
        '<svg class="cloud" viewBox="0 0 {0} {0}" role="img" aria-label="{1}" tabindex="0">{2}'
        "</svg>",
        SIZE,
        title,
        groups,
    )


def _group(task: str, pixels: Array, style: int) -> Markup:
    mark = _MARKS[MARKERS[(style + style // len(COLORS)) % len(MARKERS)]]
    path = "".join(f"M{x:.0f},{y:.0f}{mark}" for x, y in pixels)
    return html(
        '<g class="series mark"{} fill="{c}" stroke="{s}"><path d="{}"/><title>{}</title></g>',
        of_task(task),
        path,
        f"{label(task)}: {len(pixels)} samples",
        c=COLORS[style % len(COLORS)],
        s=COLORS[style % len(COLORS)] if "z" not in mark else "none",
    )
