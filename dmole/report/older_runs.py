"""Figures that the ``metrics.json`` of an older run lacks, derived from its other files."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmole.messages import excerpt
from dmole.metrics.routing_rates import second_expert_rate
from dmole.metrics.summary import summarize
from dmole.storage.digests import FILE, Digests, verify_files
from dmole.storage.files import read_text

if TYPE_CHECKING:
    from dmole.metrics.routing_rates import Count
    from dmole.report.runs import Run

ROUTING = "routing.csv"
_COLUMNS = ("stage", "true_task", "gate_set", "count")


def complete_metrics(run: Run, digests: Digests | None) -> dict[str, Any]:
    """Return the content of ``metrics.json`` with the figures that its version did not have yet.

    Learned, with its definition, follows from the evaluation matrix, and the routing rate
    ``second_expert`` from ``routing.csv``. A figure that the files do not determine stays missing.

    Args:
        run: The run.
        digests: Digests of the run; None if it is older than ``digests.json``.

    Raises:
        ValueError: If ``routing.csv`` is needed and cannot be read, or is not the file that the run
            has written; names the file.
    """
    metrics = dict(run.metrics)
    if "Learned" not in metrics and _stages_known(run):
        figures = summarize(run.matrix, run.task_names, task_of_stage=run.task_of_stage)
        stated = {"Learned": figures["definitions"]["Learned"]}
        metrics["Learned"] = figures["Learned"]
        metrics["definitions"] = (metrics.get("definitions") or {}) | stated
    routing = metrics.get("routing")
    if routing and "second_expert" not in routing and digests and ROUTING in digests.files:
        metrics["routing"] = routing | {"second_expert": _second_expert(run, digests)}
    return metrics


def _stages_known(run: Run) -> bool:
    """Return whether the folder says which tasks each stage learned."""
    return run.oracle_matrix is not None or len(run.matrix) == len(run.tasks_to_learn) + 1


def _second_expert(run: Run, digests: Digests) -> float | None:
    verify_files(run.folder, digests, ROUTING.__eq__)
    common = digests.stages[-1].get("common") if digests.stages else None
    if not (common is None or isinstance(common, str)):
        raise ValueError(f"{run.folder / FILE}: common must be null or text, got {excerpt(common)}")
    learned_at: dict[str, int] = {}
    for stage, tasks in enumerate(run.task_of_stage or (), start=1):
        learned_at |= {run.task_names[task]: stage for task in tasks}
    return second_expert_rate(_test_counts(run.folder / ROUTING), learned_at, common)


def _test_counts(path: Path) -> Iterator[Count]:
    """Yield the counts of test samples in ``routing.csv``.

    Raises:
        ValueError: If the table is broken; names the file and, if possible, the line.
    """
    try:
        rows = list(csv.reader(io.StringIO(read_text(path)), strict=True))
    except csv.Error as error:
        raise ValueError(f"{path}: broken table: {error}") from error
    header = rows[0] if rows else []
    if tuple(header) not in (_COLUMNS, (*_COLUMNS, "phase")):
        raise ValueError(f"{path}, line 1: expected the header {','.join(_COLUMNS)}[,phase]")
    for line, row in enumerate(rows[1:], start=2):
        numbers = row[:1] + row[3:4]
        if len(row) != len(header) or not all(n.isdecimal() and len(n) < 16 for n in numbers):
            form = ",".join(header)
            raise ValueError(f"{path}, line {line}: expected {form}, got {excerpt(row)}")
        if row[4:] != ["train"]:
            yield int(row[0]), row[1], row[2], int(row[3])
