"""What other thresholds would do: the routing and, from known answers, the score."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from markupsafe import Markup

from dmole.report.history import Known
from dmole.report.page.axes import Axis, score_axis
from dmole.report.page.heat import Heat
from dmole.report.page.markup import details, html, join, label, note, number
from dmole.report.page.record import Array, RunRecord
from dmole.report.page.section import Section
from dmole.report.page.svg import Plot, legend

_LEAST_KNOWN = 50.0  # percent of the answers of a point
_ALL_KNOWN = 99.95

Order = tuple[str, ...]
"""Experts of a sample, best first."""


def _draw(record: RunRecord) -> Markup | None:
    again, history = record.rerouted, record.history
    if again is None or again.routing is None or history is None:
        return None
    tasks = {name: task for name, task in again.tasks.items() if task.own}
    if not tasks:
        return None
    scales, common = again.routing.scales, again.routing.common
    owns = {name: set(task.own) for name, task in tasks.items()}
    rates = {
        name: np.array(
            [[_share(order, measure, owns[task]) for order in tasks[task].orders] for task in tasks]
        )
        for name, measure in _measures(common).items()
    }
    known = [_known(task.orders, task.ids, history.known[name]) for name, task in tasks.items()]
    scores, shares = (np.array([[cell[k] for cell in row] for row in known]) for k in (0, 1))
    best = np.array([[_best(history.known[name])] for name in tasks])
    parts = [
        html(
            '<div class="beside">{}{}</div>',
            _rates(scales, rates),
            _scores(scales, scores, shares, best),
        ),
        details("Values of each task", _by_task(list(tasks), scales, rates, scores)),
        _remark(shares, best),
    ]
    return join(parts)


def _measures(common: str | None) -> dict[str, Callable[[Order, set[str]], bool]]:
    return {
        "own expert first": lambda order, own: bool(order) and order[0] in own,
        "rejected: answered by the base model": lambda order, own: not order,
        "second expert": lambda order, own: len(set(order) - {common}) > 1,
    }


def _share(
    orders: Sequence[Order], measure: Callable[[Order, set[str]], bool], own: set[str]
) -> float:
    return 100.0 * sum(measure(order, own) for order in orders) / max(1, len(orders))


def _known(
    orders: Sequence[Sequence[Order]], ids: Sequence[str], known: Mapping[str, Known]
) -> list[tuple[float, float]]:
    """Return the mean score of the known answers and their share in percent, by scale."""
    cells = []
    for order in orders:
        found = [known[name].get(frozenset(names)) for name, names in zip(ids, order, strict=True)]
        scores = [score for score in found if score is not None]
        mean = float(np.mean(scores)) if scores else math.nan
        cells.append((mean, 100.0 * len(scores) / max(1, len(found))))
    return cells


def _best(known: Mapping[str, Known]) -> float:
    """Return what a right answer scores: 100, or more where an answer of the task has more."""
    return max([100.0, *(score for of_sample in known.values() for score in of_sample.values())])


def _rates(scales: Sequence[float], rates: Mapping[str, Array]) -> Markup:
    title = "Routing under other thresholds, mean over the learned tasks"
    plot = Plot(title, _scale_axis(scales), Axis("share of samples (%)", 0.0, 100.0))
    plot.upright(1.0, "thresholds of the run")
    for style, (name, values) in enumerate(rates.items()):
        points = list(zip(scales, values.mean(axis=0).tolist(), strict=True))
        tips = [f"{name}, thresholds times {scale:.2f}: {number(y)} %" for scale, y in points]
        plot.line(points, tips, style)
    return html("<div><h4>{}</h4>{}{}</div>", title, plot.markup(), legend(list(rates)))


def _scores(scales: Sequence[float], scores: Array, shares: Array, best: Array) -> Markup:
    """Return the mean score of known answers, with the range that the unknown ones leave.

    Args:
        scales: Factors on the thresholds.
        scores: Mean score of the known answers, ``(tasks, scales)``.
        shares: Known answers in percent, ``(tasks, scales)``.
        best: Score of a right answer, ``(tasks, 1)``.
    """
    title = "Score under other thresholds, mean over the learned tasks"
    known = np.nan_to_num(scores) * shares / 100.0  # points that known answers earn
    low, high = known.mean(axis=0), (known + best * (1.0 - shares / 100.0)).mean(axis=0)
    plot = Plot(title, _scale_axis(scales), score_axis(np.append(scores, high)))
    plot.upright(1.0, "thresholds of the run")
    points, tips = [], []
    for at, scale in enumerate(scales):
        share = float(shares[:, at].mean())
        text = f"thresholds times {scale:.2f}: {{}} ({number(share)} % of the answers are known)"
        if share < _ALL_KNOWN:
            bounds = text.format(f"between {number(low[at])} and {number(high[at])} %")
            plot.bar((scale, low[at]), (scale, high[at]), 14, 1, bounds)
        mean = _mean(scores[:, at]) if share >= _LEAST_KNOWN else math.nan
        points.append((scale, mean))
        tips.append(text.format(f"{number(mean)} % on known answers"))
    plot.line(points, tips, 0)
    names = ["mean of the known answers", "bounds: all unknown answers wrong, all right"]
    shown = names if (shares < _ALL_KNOWN).any() else names[:1]
    return html("<div><h4>{}</h4>{}{}</div>", title, plot.markup(), legend(shown))


def _mean(values: Array) -> float:
    found = values[~np.isnan(values)]
    return float(found.mean()) if len(found) else math.nan


def _scale_axis(scales: Sequence[float]) -> Axis:
    ticks = {scale: f"{scale:g}" for scale in scales if math.log2(scale).is_integer()}
    return Axis("factor on all thresholds", scales[0], scales[-1], ticks, log=True)


def _by_task(
    tasks: list[str], scales: Sequence[float], rates: Mapping[str, Array], scores: Array
) -> Markup:
    columns = [f"{scale:.2f}" for scale in scales]
    tables = {**{f"{name} (%)": values for name, values in rates.items()}, _SCORE: scores}

    def heat(name: str, values: Array) -> Markup:
        def describe(row: int, column: int) -> str:
            value = number(float(values[row, column]))
            return f"{label(tasks[row])}, thresholds times {columns[column]}: {value}"

        corner = "task, factor"
        return Heat(
            name, corner, columns, tasks, values, describe=describe, row_tasks=tasks
        ).markup()

    maps = join(heat(name, values) for name, values in tables.items())
    return html('<div class="beside">{}</div>', maps)


_SCORE = "score of known answers (%)"


def _remark(shares: Array, best: Array) -> Markup:
    """Return what the scores are, and how the missing answers are made."""
    text = (
        "Scores are means of the scores of single samples, from answers that the run gave at some "
        "stage with the same experts."
    )
    missing = 100.0 - float(shares.mean())
    if (shares < _ALL_KNOWN).any():
        text += (
            f" {number(missing)} % of the answers are not known; the bars go from "
            f"the score with all of them wrong to that with all right. "
            f"dmole report RUN --regenerate generates them."
        )
        if (best > 100.0).any():
            text += " Where scores exceed 100, a right answer counts as the best known one."
    return note(text)


SENSITIVITY = Section(
    "sensitivity",
    "Thresholds: would higher or lower ones route better?",
    "The test samples are routed again with all thresholds multiplied by a factor; 1 is the run. "
    "Small factors reject samples of the own task, large ones let wrong experts in. A flat stretch "
    "around 1 means that the thresholds do not matter much.",
    _draw,
    costly=True,
)
