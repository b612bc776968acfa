"""Routers side by side on the experts of a finished run: no expert is trained."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dmole.callbacks.evaluation_matrix import EvaluationMatrix
from dmole.callbacks.evaluation_plan import plan_oracle, plan_routed, sample_names
from dmole.callbacks.measuring import MeasuredSamples
from dmole.callbacks.router_refit import RunRefit
from dmole.routing import CommonExpertRouter, Router, gate_set_name
from dmole.routing.comparison import router_names, unfitted
from dmole.storage.files import write_csv

if TYPE_CHECKING:
    from dmole.module import ContinualModule
    from dmole.run.context import EvaluationPass
    from dmole.run.state import SequenceState

log = logging.getLogger("dmole")

Answer = Callable[["ContinualModule", "EvaluationPass"], None]

AS_SAVED = "run"
"""Name of the run's own router, as the run has saved it."""
TABLE, TEXT, GATE_SETS = "routers.csv", "routers.md", "routing.csv"


@dataclass(frozen=True)
class RouterRow:
    """Figures of a router after the last stage, on the test samples of the learned tasks.

    Args:
        router: Name of the router.
        own_expert: Share of samples in percent whose first expert is that of their task.
        last: Mean score of the tasks under this routing.
        oracle_last: The same with the experts that each task was trained with.
        stored_numbers: Numbers that the router has learned.
        multiply_adds: Multiplications that route a sample, without the encoders.
        experts_a_sample: Mean number of experts that answer a sample.
    """

    router: str
    own_expert: float
    last: float
    oracle_last: float
    stored_numbers: int
    multiply_adds: int
    experts_a_sample: float


HEADER = tuple(RouterRow.__dataclass_fields__)
_COLUMNS: tuple[str, ...] = (
    "router",
    "own expert %",
    "Last",
    "oracle Last",
    "stored numbers",
    "multiply-adds a sample",
    "experts a sample",
)


def compare_routers(
    state: SequenceState,
    module: ContinualModule,
    refit: RunRefit,
    names: Sequence[str],
    answer: Answer,
) -> list[RouterRow]:
    """Fit routers, answer the test samples under each of them and write the tables.

    A sample is answered once for each gate set that a router gives it. Of ``all`` routers, those
    that cannot choose among the experts of the run are left out with a warning.

    Args:
        state: Has the last stage; its run folder receives the tables.
        module: Has the experts; its router is the same afterwards.
        refit: The run.
        names: Routers of `dmole.routing.comparison.ROUTERS`, or ``all``.
        answer: Answers the samples of an evaluation pass.

    Returns:
        The run's own router as it was saved, then the others.

    Raises:
        ValueError: If no learned task has test samples, or a named router cannot choose among the
            experts of the run.
    """
    saved, matrix = module.router, state.callback_of(EvaluationMatrix)
    tasks = [task for task in state.data.tested_task_names if task in state.seen_tasks()]
    if not tasks:
        raise ValueError("--router: no learned task has test samples")
    routers = _usable(saved, refit, names)
    rows, counts, oracle_last = [], [], None
    try:
        for name, (router, inner) in {AS_SAVED: (saved, None), **routers}.items():
            log.info("router %s", name)
            if inner is not None:
                refit.fit(inner)
            module.router = router
            measured, label = MeasuredSamples(), f"router_{name}"
            routed = plan_routed(state, module, matrix.answers, tasks, measured, label)
            if oracle_last is None:
                oracle = plan_oracle(state, module, routed, matrix.answers)
                oracle_last = _last(state, module, matrix, oracle, tasks, answer)
            last = _last(state, module, matrix, routed, tasks, answer)
            rows.append(_row(name, module, refit, routed, last, oracle_last))
            counts += _counts(state, name, routed, tasks)
    finally:
        module.router = saved
    if state.is_global_zero:
        _write(state.run_dir, rows, counts)
    return rows


def markdown(rows: Iterable[RouterRow]) -> str:
    """Return the table in Markdown."""
    lines = [_COLUMNS, ("---", *["---:"] * (len(_COLUMNS) - 1))]
    for row in rows:
        shares = (f"{row.own_expert:.1f}", f"{row.last:.2f}", f"{row.oracle_last:.2f}")
        sizes = (f"{row.stored_numbers:,}", f"{row.multiply_adds:,}", f"{row.experts_a_sample:.2f}")
        lines.append((row.router, *shares, *sizes))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _usable(
    saved: Router, refit: RunRefit, names: Sequence[str]
) -> dict[str, tuple[Router, Router]]:
    """Return the routers to compare, not fitted, each with the one inside it that is fitted."""
    usable = {}
    for name in router_names(names):
        router = unfitted(name, refit.own)
        try:
            refit.check(router)
            usable[name] = (_joined(saved, router), router)
        except ValueError as error:
            if name in names:
                raise ValueError(f"--router {name}: {error}") from error
            log.warning("router %s is left out: %s", name, error)
    return usable


def _joined(saved: Router, router: Router) -> Router:
    """Return a router, beside the shared expert if the run has one."""
    if isinstance(saved, CommonExpertRouter) and saved.mixing and saved.common:
        return CommonExpertRouter(router, saved.mixing, saved.common)
    return router


def _last(
    state: SequenceState,
    module: ContinualModule,
    matrix: EvaluationMatrix,
    evaluation: EvaluationPass,
    tasks: Sequence[str],
    answer: Answer,
) -> float:
    """Return the mean score of the tasks under a plan; samples without an answer get one."""
    if evaluation.pending:
        answer(module, evaluation)
    return sum(matrix.score(state, task, evaluation).value for task in tasks) / len(tasks)


def _row(
    name: str,
    module: ContinualModule,
    refit: RunRefit,
    routed: EvaluationPass,
    last: float,
    oracle_last: float,
) -> RouterRow:
    pairs = [(key.split("/")[0], names) for key, names in routed.gate_sets.items()]
    own = sum(names[:1] == (refit.owner[task],) for task, names in pairs)
    width = module.backbone.embedding_width
    return RouterRow(
        router=name,
        own_expert=100.0 * own / len(pairs),
        last=last,
        oracle_last=oracle_last,
        stored_numbers=module.router.stored_numbers(),
        multiply_adds=module.router.multiply_adds(width),
        experts_a_sample=sum(len(names) for _, names in pairs) / len(pairs),
    )


def _counts(
    state: SequenceState, name: str, routed: EvaluationPass, tasks: Sequence[str]
) -> list[dict[str, object]]:
    """Return the rows of the counts of a router, as in the run's ``routing.csv``."""
    rows: list[dict[str, object]] = []
    for task in tasks:
        found = Counter(gate_set_name(routed.gate_sets[k]) for k in sample_names(state, task))
        rows += [
            {"router": name, "true_task": task, "gate_set": gate_set, "count": count}
            for gate_set, count in sorted(found.items())
        ]
    return rows


def _write(folder: Path, rows: Sequence[RouterRow], counts: Iterable[Mapping[str, object]]) -> None:
    write_csv(folder / TABLE, HEADER, map(vars, rows))
    write_csv(folder / GATE_SETS, ("router", "true_task", "gate_set", "count"), counts)
    (folder / TEXT).write_text(markdown(rows), encoding="utf-8")
