"""Which experts the test samples of each task use, after each stage."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from markupsafe import Markup

from dmole.report.page.axes import Axis, stage_axis
from dmole.report.page.heat import Heat
from dmole.report.page.markup import html, join, label, number
from dmole.report.page.record import RunRecord
from dmole.report.page.samples import owners_of
from dmole.report.page.section import Section
from dmole.report.page.svg import Plot, legend

BASE = "base"
"""Gate set of samples that no expert accepts."""

MOST_STAGES = 24
"""Most stages with a heatmap; of more, evenly spaced ones with the last."""

MOST_SETS = 40
"""Most gate sets with a column of their own; rarer ones share a column."""

_Counts = Mapping[str, Counter[str]]
"""Samples by true task and gate set."""


def _draw(record: RunRecord, most: int = MOST_STAGES) -> Markup | None:
    counts: dict[int, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    for stage, task, gates, count in record.routing or ():
        counts[stage][task][gates] += count
    stages = [stage for stage in sorted(counts) if stage > 0]
    if not stages:
        return None
    lines = [_rates, _entropies] if len(stages) > 1 else []
    rates = join(draw(record, stages, counts) for draw in lines)
    every = math.ceil(len(stages) / most)
    shown = stages[::-1][::every][::-1]
    maps = (
        html(
            "<details{}><summary>Stage {}</summary>{}</details>",
            Markup(" open") if stage == stages[-1] else "",
            stage,
            _heat(record, counts[stage], stage),
        )
        for stage in shown
    )
    picker = html('<div class="picker">{}</div>', join(maps))
    head = html("<h4>Gate sets by true task</h4>")
    return html('<div class="beside">{}</div>{}{}', rates, head, picker)


def _rates(record: RunRecord, stages: Sequence[int], counts: Mapping[int, _Counts]) -> Markup:
    """Return the shares of rejected samples and of those with a second expert by stage."""
    common = record.common_expert
    measures: dict[str, Callable[[set[str]], bool]] = {
        "rejected: answered by the base model": {BASE}.__eq__,
        "second expert": lambda names: len(names - {common, BASE}) > 1,
    }
    curves = {
        name: [(float(s), _share(_seen(record, counts, s), measure)) for s in stages]
        for name, measure in measures.items()
    }
    high = max([10.0, *(y for points in curves.values() for _, y in points if not math.isnan(y))])
    plot = Plot("Rates by stage", stage_axis(stages[-1]), Axis("share of samples (%)", 0.0, high))
    for style, (name, points) in enumerate(curves.items()):
        tips = [f"{name}, after stage {stage:.0f}: {number(y)} %" for stage, y in points]
        plot.line(points, tips, style)
    title = "Samples of learned tasks that are rejected, and with a second expert"
    return html("<div><h4>{}</h4>{}{}</div>", title, plot.markup(), legend(list(measures)))


def _entropies(record: RunRecord, stages: Sequence[int], counts: Mapping[int, _Counts]) -> Markup:
    """Return the mean entropy of the gate sets within a task by stage."""
    points = []
    for stage in stages:
        found = [entropy(each) for each in _seen(record, counts, stage).values()]
        points.append((float(stage), float(np.mean(found)) if found else math.nan))
    high = max([1.0, *(y for _, y in points if not math.isnan(y))])
    title = "Entropy of the gate sets within a task: 0 if all its samples use the same set"
    plot = Plot(title, stage_axis(stages[-1]), Axis("entropy (bits), mean over tasks", 0.0, high))
    tips = [f"after stage {stage:.0f}: {number(y, 2)} bits" for stage, y in points]
    plot.line(points, tips, 2)
    return html("<div><h4>{}</h4>{}</div>", title, plot.markup())


def _seen(record: RunRecord, counts: Mapping[int, _Counts], stage: int) -> _Counts:
    """Return the counts of the tasks that are learned by a stage."""
    never = stage + 1
    return {t: c for t, c in counts[stage].items() if record.learned_at.get(t, never) <= stage}


def _share(counts: _Counts, measure: Callable[[set[str]], bool]) -> float:
    """Return the share of samples in percent whose experts have a property; NaN without samples."""
    total = sum(each.total() for each in counts.values())
    hits = sum(n for each in counts.values() for gates, n in each.items() if measure(_set(gates)))
    return 100.0 * hits / total if total else math.nan


def _set(gates: str) -> set[str]:
    return set(gates.split("+"))


def entropy(counts: Mapping[str, int]) -> float:
    """Return the entropy in bits of the gate sets of a task; NaN without samples.

    Example:
        >>> entropy({"a": 3}), entropy({"a": 2, "b": 2})
        (0.0, 1.0)
    """
    total = sum(counts.values())
    if not total:
        return math.nan
    shares = (count / total for count in counts.values() if count)
    return sum(-share * math.log2(share) for share in shares) + 0.0


def _heat(record: RunRecord, counts: _Counts, stage: int) -> Markup:
    """Return the share of the samples of each task, by gate set."""
    totals = sum(counts.values(), Counter[str]())
    order = {name: at for at, name in enumerate([BASE, *record.tasks])}
    common = [name for name, _ in totals.most_common(MOST_SETS)]
    columns = sorted(common, key=lambda name: _place(name, order))
    if rare := totals.keys() - set(columns):
        columns.append(f"{len(rare)} other sets")
    tasks = list(counts)
    shares = np.full((len(tasks), len(columns)), np.nan)
    for row, task in enumerate(tasks):
        for gates, count in counts[task].items():
            column = columns.index(gates) if gates in common else len(columns) - 1
            share = 100.0 * count / max(1, counts[task].total())
            shares[row, column] = np.nan_to_num(shares[row, column]) + share

    def describe(row: int, column: int) -> str:
        sizes = f"{number(float(shares[row, column]))} % of {counts[tasks[row]].total()} samples"
        return f"{label(tasks[row])} by {label(columns[column])}: {sizes}"

    owners = owners_of(record)
    own = {
        (row, column)
        for row, task in enumerate(tasks)
        for column, gates in enumerate(columns)
        if record.learned_at.get(task, stage + 1) <= stage
        and _alone(record, gates) & owners.get(task, {task})
    }
    heat = Heat(
        "Share of the test samples of each task (%); outlined: the expert of the task alone",
        "true task",
        columns,
        [f"{task}{_state(record, task, stage)}" for task in tasks],
        shares,
        describe=describe,
        outlined=own,
        row_tasks=tasks,
        missing="blank",
    )
    return heat.markup()


def _place(gates: str, order: Mapping[str, int]) -> tuple[int, int, str]:
    """Return what sorts gate sets: few experts first, then by the task of the first expert."""
    return gates.count("+"), order.get(gates.partition("+")[0], len(order)), gates


def _alone(record: RunRecord, gates: str) -> set[str]:
    """Return the only expert of a gate set besides the common one; empty if there are several."""
    experts = _set(gates) - {record.common_expert}
    return experts if len(experts) == 1 else set()


def _state(record: RunRecord, task: str, stage: int) -> str:
    return "" if record.learned_at.get(task, stage + 1) <= stage else " (unseen)"


ACTIVATION = Section(
    "activation",
    "Routing: which experts answer the samples of each task",
    "A gate set is the experts that answer a sample together; base is the model without experts. "
    "Samples in outlined cells are answered by their own task's expert. Samples of learned tasks "
    "under base are rejected, which costs score; unseen tasks belong there.",
    _draw,
    brief=lambda record: _draw(record, most=1),
)
