"""Figures that the ``metrics.json`` of an older run lacks, derived from its other files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dmole.messages import excerpt
from dmole.metrics.counterparts import KEY as COUNTERPARTS
from dmole.metrics.counterparts import counterparts
from dmole.metrics.routing_rates import second_expert_rate
from dmole.metrics.summary import summarize
from dmole.storage.digests import FILE, Digests, verify_files
from dmole.storage.routing_table import FILE as ROUTING
from dmole.storage.routing_table import read_test_counts

if TYPE_CHECKING:
    from dmole.report.runs import Run


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
    if COUNTERPARTS not in metrics and len(run.matrix) > 1 and _stages_known(run):
        metrics[COUNTERPARTS] = counterparts(run.matrix, run.task_of_stage)
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
    return second_expert_rate(read_test_counts(run.folder / ROUTING), learned_at, common)
