"""Words in figures: names shown as they are, and placed so that they do not cover each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes

from dmole.report.style import INK

Boxes = npt.NDArray[np.float64]

LONGEST = 30
"""Characters of a name; longer ones lose their middle."""


def plain(name: str) -> str:
    r"""Return a name that a figure shows as it is: no formula, in the legend, not too long.

    Example:
        >>> plain("$x$"), plain("_y")
        ('\\$x\\$', ' _y')
    """
    name = " ".join(name.split())
    if len(name) > LONGEST:
        half = (LONGEST - 1) // 2
        name = f"{name[:half]}…{name[-half:]}"
    name = name.replace("$", r"\$")
    return f" {name}" if name.startswith("_") else name  # a legend leaves out what begins with _


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Return places on a line as near as possible to those wanted, at least ``gap`` apart.

    Args:
        wanted: Places wanted, in any order.
        gap: Least distance.
        low: Lowest place allowed; so many that they do not fit go beyond ``high``.
        high: Highest place allowed.

    Example:
        >>> spread([1.0, 1.0, 5.0], gap=1.0, low=0.0, high=9.0)
        [0.5, 1.5, 5.0]
    """
    order = sorted(range(len(wanted)), key=lambda place: wanted[place])
    blocks: list[list[float]] = []  # least squares under order: neighbors that collide are pooled
    for rank, place in enumerate(order):
        blocks.append([wanted[place] - rank * gap])
        while len(blocks) > 1 and np.mean(blocks[-2]) > np.mean(blocks[-1]):
            last = blocks.pop()
            blocks[-1].extend(last)
    shifted = [float(np.mean(block)) for block in blocks for _ in block]
    top = max(low, high - (len(wanted) - 1) * gap)
    places = [0.0] * len(wanted)
    for rank, (place, value) in enumerate(zip(order, shifted, strict=True)):
        places[place] = min(max(value, low), top) + rank * gap
    return places


def label_ends(
    axes: Axes, ends: Sequence[tuple[float, float, str, str]], height: float, size: float
) -> None:
    """Write labels to the right of axes, each joined to its point by a thin line.

    Args:
        axes: Where; their limits must be set.
        ends: x, y, text and color of each.
        height: Height of the axes in points.
        size: Size of the letters in points.
    """
    low, high = axes.get_ylim()
    gap = (high - low) * 1.25 * size / height
    places = spread([y for _, y, _, _ in ends], gap, low, high)
    for (x, y, text, color), place in zip(ends, places, strict=True):
        axes.annotate(
            text,
            (x, y),
            xytext=(1.03, place),
            textcoords=("axes fraction", "data"),
            va="center",
            fontsize=size,
            color=INK,
            arrowprops={
                "arrowstyle": "-",
                "color": color,
                "linewidth": 0.7,
                "relpos": (0.0, 0.5),
                "shrinkA": 1,
                "shrinkB": 2,
            },
            annotation_clip=False,
        )


_RADII = (9.0, 16.0, 26.0, 38.0, 52.0, 70.0, 90.0)
_STEPS = 16
_PLACES = np.array(
    [
        (radius, math.cos(turn), math.sin(turn))
        for radius in _RADII
        for turn in (math.tau * step / _STEPS for step in range(_STEPS))
    ]
)
"""Places tried for a name: distance from its point in points, and direction."""


def label_points(
    axes: Axes, points: Mapping[str, tuple[float, float]], blocked: Boxes, size: float
) -> None:
    """Write each point's name near it where no other name, point or error bar is.

    A name that is not beside its point, or as near to another one, is joined to it by a line.

    Args:
        axes: Where; the figure must have been laid out.
        points: Place in data by name.
        blocked: Boxes in pixels that no name may cover, ``(N, 4)``: left, bottom, right, top.
        size: Size of the letters in points.
    """
    scale = axes.figure.dpi / 72
    frame = np.array(axes.get_window_extent().extents)[None]
    centers = {name: axes.transData.transform(point) for name, point in points.items()}
    radii = scale * _PLACES[:, 0]
    for name, point in points.items():
        look: dict[str, Any] = {"fontsize": size, "color": INK, "ha": "left", "va": "bottom"}
        text = axes.annotate(plain(name), point, (0, 0), textcoords="offset points", **look)
        text.set_in_layout(False)
        box = text.get_window_extent()
        places = _beside(centers[name], box.width, box.height, scale)
        others = np.stack([centers[name] + 1e6, *(centers[n] for n in centers if n != name)])
        # who reads it must not take it for the name of another point
        unclear = _distances(places, others).min(axis=1) < 1.2 * radii
        outside = box.width * box.height - _overlaps(places, frame).sum(axis=1)
        covered = _overlaps(places, blocked).sum(axis=1)
        best = int(np.argmin(2 * radii + covered + 20 * outside + 60 * scale * unclear))
        place = places[best]
        blocked = np.concatenate([blocked, place[None]])
        text.set_position(tuple((place[:2] - centers[name]) / scale))
        if _PLACES[best, 0] > _RADII[1] or unclear[best]:
            near = np.clip(centers[name], place[:2], place[2:])
            ends = axes.transData.inverted().transform(np.stack([centers[name], near]))
            line: dict[str, Any] = {"color": INK, "alpha": 0.5, "linewidth": 0.7}
            axes.plot(*ends.T, **line, zorder=2, scalex=False, scaley=False)


def _beside(center: Boxes, width: float, height: float, scale: float) -> Boxes:
    """Return boxes of one size whose nearest side is each of `_PLACES` from a point."""
    distance, right, up = _PLACES.T
    radius = scale * distance
    x = center[0] + radius * right + (right - 1) * width / 2
    y = center[1] + radius * up + (up - 1) * height / 2
    return np.stack([x, y, x + width, y + height], axis=1)


def _distances(boxes: Boxes, points: Boxes) -> Boxes:
    """Return how far points are from boxes, in pixels, ``(boxes, points)``."""
    nearest = np.clip(points[None], boxes[:, None, :2], boxes[:, None, 2:])
    distances: Boxes = np.linalg.norm(points[None] - nearest, axis=2)
    return distances


def _overlaps(some: Boxes, others: Boxes) -> Boxes:
    """Return the area that each two boxes share, in square pixels, ``(some, others)``."""
    low = np.maximum(some[:, None, :2], others[None, :, :2])
    high = np.minimum(some[:, None, 2:], others[None, :, 2:])
    areas: Boxes = np.prod(np.clip(high - low, 0, None), axis=2)
    return areas
