"""Labels in figures: names are shown literally and do not overlap."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes

from dmole.messages import one_line
from dmole.report.style import INK

Boxes = npt.NDArray[np.float64]

LONGEST = 30
"""Most characters of a name; the middle of a longer name is replaced by an ellipsis."""


def plain(name: str) -> str:
    r"""Return a name that a figure shows literally: no formula, kept by legends, shortened.

    Example:
        >>> plain("$x$"), plain("_y")
        ('\\$x\\$', ' _y')
    """
    name = one_line(name)
    if len(name) > LONGEST:
        half = (LONGEST - 1) // 2
        name = f"{name[:half]}…{name[-half:]}"
    name = name.replace("$", r"\$")
    return f" {name}" if name.startswith("_") else name  # legends skip names that begin with _


def spread(targets: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Return positions on a line that are as near as possible to targets and ``gap`` apart.

    Args:
        targets: Target positions, in any order.
        gap: Smallest distance between two positions.
        low: Lowest position.
        high: Highest position; exceeded if there are too many positions for the interval.

    Example:
        >>> spread([1.0, 1.0, 5.0], gap=1.0, low=0.0, high=9.0)
        [0.5, 1.5, 5.0]
    """
    order = sorted(range(len(targets)), key=lambda index: targets[index])
    blocks: list[list[float]] = []  # isotonic regression: colliding neighbors are pooled
    for rank, index in enumerate(order):
        blocks.append([targets[index] - rank * gap])
        while len(blocks) > 1 and np.mean(blocks[-2]) > np.mean(blocks[-1]):
            last = blocks.pop()
            blocks[-1].extend(last)
    shifted = [float(np.mean(block)) for block in blocks for _ in block]
    top = max(low, high - (len(targets) - 1) * gap)
    positions = [0.0] * len(targets)
    for rank, (index, value) in enumerate(zip(order, shifted, strict=True)):
        positions[index] = min(max(value, low), top) + rank * gap
    return positions


def label_ends(
    axes: Axes, ends: Sequence[tuple[float, float, str, str]], height: float, size: float
) -> None:
    """Write labels to the right of the axes, each joined to its point by a thin line.

    Args:
        axes: The axes; their limits must be set.
        ends: x, y, text and color of each label.
        height: Height of the axes in points.
        size: Font size in points.
    """
    low, high = axes.get_ylim()
    gap = (high - low) * 1.25 * size / height
    positions = spread([y for _, y, _, _ in ends], gap, low, high)
    for (x, y, text, color), position in zip(ends, positions, strict=True):
        axes.annotate(
            text,
            (x, y),
            xytext=(1.03, position),
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
_OFFSETS = np.array(
    [
        (radius, math.cos(turn), math.sin(turn))
        for radius in _RADII
        for turn in (math.tau * step / _STEPS for step in range(_STEPS))
    ]
)
"""Candidate offsets of a label from its point: distance in points, and direction."""


def label_points(
    axes: Axes, points: Mapping[str, tuple[float, float]], blocked: Boxes, size: float
) -> None:
    """Write the name of each point near it, away from other names, points and error bars.

    A line joins a name to its point if the name is far from it or near to another point.

    Args:
        axes: The axes; the layout of the figure must be done.
        points: Data coordinates by name.
        blocked: Boxes in pixels that no name may cover, ``(N, 4)``: left, bottom, right, top.
        size: Font size in points.
    """
    scale = axes.figure.dpi / 72
    frame = np.array(axes.get_window_extent().extents)[None]
    centers = {name: axes.transData.transform(point) for name, point in points.items()}
    radii = scale * _OFFSETS[:, 0]
    for name, point in points.items():
        look: dict[str, Any] = {"fontsize": size, "color": INK, "ha": "left", "va": "bottom"}
        text = axes.annotate(plain(name), point, (0, 0), textcoords="offset points", **look)
        text.set_in_layout(False)
        box = text.get_window_extent()
        boxes = _beside(centers[name], box.width, box.height, scale)
        others = np.stack([centers[name] + 1e6, *(centers[n] for n in centers if n != name)])
        # a reader must not take the label for that of another point
        unclear = _distances(boxes, others).min(axis=1) < 1.2 * radii
        outside = box.width * box.height - _overlaps(boxes, frame).sum(axis=1)
        covered = _overlaps(boxes, blocked).sum(axis=1)
        best = int(np.argmin(2 * radii + covered + 20 * outside + 60 * scale * unclear))
        chosen = boxes[best]
        blocked = np.concatenate([blocked, chosen[None]])
        text.set_position(tuple((chosen[:2] - centers[name]) / scale))
        if _OFFSETS[best, 0] > _RADII[1] or unclear[best]:
            near = np.clip(centers[name], chosen[:2], chosen[2:])
            ends = axes.transData.inverted().transform(np.stack([centers[name], near]))
            line: dict[str, Any] = {"color": INK, "alpha": 0.5, "linewidth": 0.7}
            axes.plot(*ends.T, **line, zorder=2, scalex=False, scaley=False)


def _beside(center: Boxes, width: float, height: float, scale: float) -> Boxes:
    """Return boxes of one size, ``(offsets, 4)``, each at one of `_OFFSETS` from a point."""
    distance, right, up = _OFFSETS.T
    radius = scale * distance
    x = center[0] + radius * right + (right - 1) * width / 2
    y = center[1] + radius * up + (up - 1) * height / 2
    return np.stack([x, y, x + width, y + height], axis=1)


def _distances(boxes: Boxes, points: Boxes) -> Boxes:
    """Return the distances of points from boxes in pixels, ``(boxes, points)``."""
    nearest = np.clip(points[None], boxes[:, None, :2], boxes[:, None, 2:])
    distances: Boxes = np.linalg.norm(points[None] - nearest, axis=2)
    return distances


def _overlaps(first: Boxes, second: Boxes) -> Boxes:
    """Return the area that two boxes share in square pixels, ``(first, second)``."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    areas: Boxes = np.prod(np.clip(high - low, 0, None), axis=2)
    return areas
