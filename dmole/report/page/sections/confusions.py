"""Which expert the samples of each task get first, and samples that get another task's."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from dmole.report.history import BASE, History, experts_of
from dmole.report.page.card import card
from dmole.report.page.heat import Heat
from dmole.report.page.markup import html, join, label, note, number
from dmole.report.page.record import RunRecord
from dmole.report.page.samples import owners_of
from dmole.report.page.section import Section

MOST_PAIRS = 24
"""Most pairs of true task and chosen expert whose samples are shown."""

_OPEN = 2  # pairs that are open at first


def _draw(record: RunRecord) -> Markup | None:
    if not (record.metrics or {}).get("routing") or not owners_of(record):
        return None  # the router does not tell tasks apart
    last = max((stage for stage, *_ in record.routing or ()), default=0)
    if not last:
        return None
    counts: dict[str, Counter[str]] = {}
    for stage, task, gates, count in record.routing or ():
        if stage == last:
            counts.setdefault(task, Counter())[next(iter(experts_of(gates)), BASE)] += count
    return join([_matrix(record, counts), _samples(record, counts)])


def _matrix(record: RunRecord, counts: dict[str, Counter[str]]) -> Markup:
    """Return the shares of the first experts by true task."""
    tasks = list(counts)
    experts = list(
        dict.fromkeys([*record.tasks_of_expert, *(e for c in counts.values() for e in c)])
    )
    columns = [*(name for name in experts if name != BASE and _used(name, counts)), BASE]
    totals = {task: counts[task].total() for task in tasks}
    values = np.array(
        [[100.0 * counts[t][e] / max(1, totals[t]) if counts[t][e] else math.nan for e in columns]
         for t in tasks]
    )  # fmt: skip

    def describe(row: int, column: int) -> str:
        task, expert = tasks[row], columns[column]
        share = number(float(values[row, column]))
        return f"{label(task)} to {label(expert)}: {counts[task][expert]} samples, {share} %"

    owners = owners_of(record)
    owned = [owners.get(task, {BASE}) for task in tasks]  # a task that is not learned is rejected
    cells = [(r, c) for r in range(len(tasks)) for c in range(len(columns))]
    heat = Heat(
        "First expert of the test samples after the last stage (% of each task)",
        "true task",
        columns,
        tasks,
        values,
        describe=describe,
        outlined={(r, c) for r, c in cells if columns[c] in owned[r]},
        row_tasks=tasks,
        missing="blank",
    )
    return heat.markup()


def _used(expert: str, counts: dict[str, Counter[str]]) -> bool:
    return any(each[expert] for each in counts.values())


def _samples(record: RunRecord, counts: dict[str, Counter[str]]) -> Markup:
    """Return samples of each pair of true task and first expert, the most frequent pair first."""
    history = record.history
    if history is None:
        return Markup()
    pairs = [
        (counts.get(task, Counter())[first], task, first, names)
        for task, found in history.confused.items()
        for first, names in found.items()
    ]
    if not pairs:
        return note("Every sample of a learned task gets the expert of its task first.")
    pairs.sort(key=lambda pair: (pair[2] == BASE, -pair[0]))
    parts = [
        _pair(record, history, pair[1:], pair[0], at < _OPEN)
        for at, pair in enumerate(pairs[:MOST_PAIRS])
    ]
    if len(pairs) > MOST_PAIRS:
        parts.append(note(f"{MOST_PAIRS} of {len(pairs)} pairs are shown."))
    return html("<h4>Confused samples</h4>{}", join(parts))


def _pair(
    record: RunRecord,
    history: History,
    pair: tuple[str, str, Sequence[str]],
    count: int,
    shown: bool,
) -> Markup:
    task, first, names = pair
    images = history.images.get(task, {})
    kind = "rejected" if first == BASE else "confused"
    cards = (
        card(
            history.stories[task][name], images.get(name), kind, _losses(record, task, first, name)
        )
        for name in names
    )
    title = "answered by the base model" if first == BASE else f"given to {label(first)}"
    return html(
        '<details class="cases"{} data-task="{}"><summary><b>{}</b> {}: {}{}</summary>'
        '<div class="cards">{}</div></details>',
        Markup(" open") if shown else Markup(),
        task,
        label(task),
        title,
        "1 sample" if count == 1 else f"{count} samples",
        f", {len(names)} shown" if len(names) < count else "",
        join(cards),
    )


def _losses(record: RunRecord, task: str, first: str, name: str) -> Markup:
    """Return the losses of a sample under its own and the chosen autoencoder."""
    again = record.rerouted
    if again is None or again.routing is None or task not in again.tasks:
        return Markup()
    routed, fitted = again.tasks[task], again.routing.fitted
    ratios = routed.losses[list(routed.ids).index(name)] / again.routing.thresholds
    asked = {"own task": routed.own[:1], "chosen expert": (first,)}
    found = [
        f"{which} {number(float(ratios[fitted.index(expert)]), 2)}"
        for which, experts in asked.items()
        for expert in experts
        if expert in fitted
    ]
    text = "Loss / threshold by autoencoder (accepted below 1): " + ", ".join(found)
    return note(text + _alone(record, task, routed.own, name)) if found else Markup()


def _alone(record: RunRecord, task: str, own: Sequence[str], name: str) -> str:
    """Return the score of the answer of a sample's own expert, if that is known."""
    again, history = record.rerouted, record.history
    common = again.routing.common if again is not None and again.routing is not None else None
    experts = frozenset(filter(None, (*own[:1], common)))
    score = history.known[task][name].get(experts) if history is not None else None
    return "" if score is None else f". Score with its own expert: {number(score, 0)} %."


CONFUSIONS = Section(
    "confusions",
    "Router confusions: samples that get another expert than that of their task",
    "A row is a task, a column the expert that the router ranks first; base means that no expert "
    "accepted the sample. Outlined cells are right; every other sample is a confusion.",
    _draw,
    costly=True,
)
