"""A map of the router embeddings of the test samples, and of their reconstructions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from markupsafe import Markup

from dmole.report.page.cloud import cloud
from dmole.report.page.markup import html, join, note
from dmole.report.page.record import Array, RunRecord
from dmole.report.page.section import Section
from dmole.report.page.svg import legend
from dmole.report.projection import principal, project, why_not_tsne
from dmole.storage.case_images import chosen

MOST = 500
"""Most samples of a task."""

MOST_POINTS = 2500
"""Most samples of all tasks together, which bounds the time of the projection."""

_TSNE = "t-SNE: neighborhoods have a meaning, distances and directions have none"


def _draw(record: RunRecord) -> Markup | None:
    again = record.rerouted
    if again is None or again.routing is None or not again.tasks:
        return None
    count = max(1, min(MOST, MOST_POINTS // len(again.tasks)))
    raw: dict[str, Array] = {}
    made: dict[str, Array] = {}
    for task, routed in list(again.tasks.items())[:MOST_POINTS]:
        ids = [routed.ids[at] for at in chosen(task, routed.ids, count)]
        inputs, outputs = again.routing.reconstructed(task, ids)
        raw[task] = inputs.double().numpy()
        if outputs is not None:
            made[task] = outputs.double().numpy()
    total = sum(map(len, raw.values()))
    reason = why_not_tsne(min(total, sum(map(len, made.values())) or total))
    place = partial(principal, count=2) if reason else project  # both maps in one way
    maps = (
        _map(record, "Embeddings, the input of the autoencoders", raw, place),
        _map(record, "Reconstruction of each embedding by its own task's autoencoder", made, place),
    )
    method = f"PCA, since {reason}" if reason else _TSNE
    shown = f"{total} samples, at most {count} of a task. {method}."
    return html(
        '<div class="beside">{}</div>{}{}',
        join(maps),
        legend(record.tasks, record.tasks),
        note(shown),
    )


def _map(
    record: RunRecord, title: str, rows: dict[str, Array], place: Callable[[Array], Array]
) -> Markup:
    if not rows:
        return Markup()
    points = place(np.concatenate(list(rows.values())))
    ends = np.cumsum([len(each) for each in rows.values()])[:-1]
    placed = dict(zip(rows, np.split(points, ends), strict=True))
    styles = {task: record.style_of(task) for task in rows}
    return html("<div><h4>{}</h4>{}</div>", title, cloud(title, placed, styles))


MAP = Section(
    "map",
    "Embeddings: which tasks look alike to the router",
    "A point is a test sample, its color and mark the task. Tasks that overlap in the first map "
    "are hard to tell apart. The second map shows the reconstructions by the autoencoders.",
    _draw,
    costly=True,
)
