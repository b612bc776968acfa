"""What became of the samples: their score and their experts, before and after an edit."""

from __future__ import annotations

import math
from pathlib import Path

from dmole.editing.draft import Draft
from dmole.metrics.matrix_file import read_matrix
from dmole.storage.routing_table import FILE as ROUTING
from dmole.storage.routing_table import read_test_counts

MATRIX = "evaluation_matrix.csv"


def outcome(draft: Draft, folder: Path) -> str:
    """Return one line for each task: score before and now, and the experts of its samples.

    Args:
        draft: The edited run.
        folder: Its folder, evaluated.
    """
    before, now = _last_scores(draft.source.run), _last_scores(folder)
    counts: dict[str, list[tuple[str, int]]] = {}
    rows = list(read_test_counts(folder / ROUTING))
    last = max(stage for stage, *_ in rows)
    for stage, task, gates, count in rows:
        if stage == last:
            counts.setdefault(task, []).append((gates, count))
    width = max(map(len, now))
    return "\n".join(
        f"{task:<{width}}  {_score(before.get(task))} -> {_score(score)}   "
        + ", ".join(f"{gates} {n}" for gates, n in sorted(counts[task], key=lambda pair: -pair[1]))
        for task, score in now.items()
    )


def _last_scores(run: Path) -> dict[str, float]:
    """Return the score of each task in the last row of the matrix; none without a matrix."""
    path = run / MATRIX
    if not path.exists():
        return {}
    matrix, names = read_matrix(path)
    return dict(zip(names, matrix[-1].tolist(), strict=True))


def _score(score: float | None) -> str:
    return "   -" if score is None or math.isnan(score) else f"{score:5.1f}"
