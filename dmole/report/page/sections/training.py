"""Loss and learning rate factors over the optimizer steps, from the events of the run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from markupsafe import Markup

from dmole.report.page.axes import Axis
from dmole.report.page.markup import html, join, number
from dmole.report.page.record import RunRecord
from dmole.report.page.section import Section
from dmole.report.page.svg import Plot, legend
from dmole.storage.scalars import read_scalars

POINTS = 300
"""Most points of a line; of more steps the means of neighbors are drawn."""

MOST_LINES = 12
"""Most lines of the figure of factors."""

MOST_ENDS = 300
"""Most ends of stages that are drawn."""

_LOSS, _FACTOR, _SCORE = "train/loss", "curriculum/factor_", "score/"
_LONGEST = 2_000_000  # values that are read

Curve = list[tuple[int, float]]
"""Steps and values."""


@dataclass
class _Logged:
    """What the events of a run hold.

    Args:
        curves: Values by name.
        ends: Last step of each stage.
    """

    curves: dict[str, Curve] = field(default_factory=dict)
    ends: dict[int, int] = field(default_factory=dict)


def _draw(record: RunRecord) -> Markup | None:
    logged = _read(record)
    loss = logged.curves.get(_LOSS)
    if not loss:
        return None
    parts = [
        _figure("Training loss (cross-entropy, nats per token)", "loss", {"loss": loss}, logged)
    ]
    factors = {
        name.removeprefix(_FACTOR): curve
        for name, curve in logged.curves.items()
        if name.startswith(_FACTOR)
    }
    if factors:
        shown = dict(list(factors.items())[:MOST_LINES])
        title = "Curriculum: factor on the learning rate of each modality"
        parts.append(_figure(title, "factor", shown, logged))
    return html('<div class="beside">{}</div>', join(parts))


def _read(record: RunRecord) -> _Logged:
    """Return the scalars; the last step before scores are logged is the end of their stage."""
    logged, step, count = _Logged(), -1, 0
    for path in sorted(record.folder.glob("events.out.tfevents.*")):
        for name, at, value in read_scalars(path, _wanted):
            count += 1
            if count > _LONGEST:
                return logged
            if name.startswith(_SCORE):
                logged.ends.setdefault(at, step)
                continue
            step = max(step, at)
            logged.curves.setdefault(name, []).append((at, value))
    return logged


def _wanted(name: str) -> bool:
    return name == _LOSS or name.startswith((_FACTOR, _SCORE))


def _figure(title: str, quantity: str, curves: Mapping[str, Curve], logged: _Logged) -> Markup:
    """Return lines over the steps, with a vertical line at the end of each stage."""
    values = [value for curve in curves.values() for _, value in curve]
    last = max(step for curve in curves.values() for step, _ in curve)
    low, high = min(0.0, *values), max(*values, 2.0 if quantity == "factor" else 0.0)
    plot = Plot(
        title,
        Axis("optimizer step (dashed: end of a stage)", 0.0, max(1, last)),
        Axis(quantity, low, high + 0.05 * (high - low) or 1.0),
    )
    for stage, step in list(logged.ends.items())[:MOST_ENDS]:
        if stage > 0 and 0 <= step < last:
            plot.upright(step, f"end of stage {stage}, last logged step {step}")
    for style, (name, curve) in enumerate(curves.items()):
        points = _thinned(curve)
        tips = [f"{name} at step {step:.0f}: {number(value, 3)}" for step, value in points]
        plot.line(points, tips, style, marked=len(points) == 1)
    names = legend(list(curves)) if len(curves) > 1 else Markup()
    return html("<div><h4>{}</h4>{}{}</div>", title, plot.markup(), names)


def _thinned(curve: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    """Return at most `POINTS` points, means of neighbors."""
    parts = np.array_split(np.array(curve, dtype=np.float64), math.ceil(len(curve) / _width(curve)))
    return [(float(part[:, 0].mean()), float(part[:, 1].mean())) for part in parts]


def _width(curve: Sequence[tuple[int, float]]) -> int:
    return max(1, math.ceil(len(curve) / POINTS))


TRAINING = Section(
    "training",
    "Training: loss and curriculum over the steps",
    "The loss should fall within a stage; it jumps where a new task begins. The factor multiplies "
    "the learning rate of a modality: above 1 it learns faster, below 1 slower.",
    _draw,
    costly=True,
)
