"""Routers side by side on the experts of a finished run: no expert is trained."""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from dmole.callbacks.embedding import embed_samples
from dmole.callbacks.evaluation_matrix import EvaluationMatrix
from dmole.callbacks.evaluation_plan import plan_oracle, plan_routed, sample_names
from dmole.callbacks.evaluation_results import task_experts
from dmole.callbacks.measuring import MeasuredSamples
from dmole.callbacks.router_fitting import RouterFitting, choose_samples
from dmole.callbacks.task_naming import fit_names
from dmole.distributed import broadcast
from dmole.report.run_files import read_config
from dmole.routing import CommonExpertRouter, GenerativeRouter, Router, gate_set_name
from dmole.routing.comparison import ROUTERS
from dmole.routing.routers import too_few
from dmole.storage.files import write_csv

if TYPE_CHECKING:
    from dmole.data import Sample
    from dmole.module import ContinualModule
    from dmole.run.context import EvaluationPass
    from dmole.run.state import SequenceState
    from dmole.streams.draws import Draw
    from dmole.streams.stream import Stage

log = logging.getLogger("dmole")

R = TypeVar("R", bound=Router)
Answer = Callable[["ContinualModule", "EvaluationPass"], None]

LR = 1e-3
"""Learning rate of the adapter of a router where the run states none."""
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


class RunRefit:
    """A finished run whose router is fitted again; see `dmole.routing.comparison.Refit`.

    Args:
        state: Has the data, and the stages of the run, of which the last is the current one.
        module: Has the experts and the router of the run.
        own: The router of the run with its settings, not fitted.
        run: The run folder.
    """

    def __init__(
        self, state: SequenceState, module: ContinualModule, own: Router, run: Path
    ) -> None:
        self.state = state
        self.module = module
        self.run = run
        self.own = getattr(own, "router", own)  # inside CommonExpertRouter
        self.owner: Mapping[str, str] = task_experts(state, module.router)
        self.updates = module.router.updates
        self._draws = _draws(state)
        self._embeddings: dict[int, Tensor] = {}

    def samples(self, stage: Stage) -> Sequence[tuple[Sample, str]]:
        """Return the training samples of a stage with their tasks, without replayed ones."""
        draw = self._draws.get((stage.index, stage.expert, stage.tasks), stage.draw)
        return self.state.data.arriving_items(replace(stage, draw=draw))

    def embeddings(self, stage: Stage) -> Tensor:
        """Return the embeddings that a router is fitted to after a stage, ``(N, D)``."""
        if stage.index not in self._embeddings:
            fitting = self.state.callback_of(RouterFitting)
            items = self.samples(stage)
            indices = choose_samples(len(items), fitting.embedding_samples, fitting.seed)
            chosen = [items[index] for index in indices]
            rows = embed_samples(self.state, self.module, chosen, "train")
            self._embeddings[stage.index] = rows
        return self._embeddings[stage.index]

    def fit(self, router: R) -> R:
        """Fit a router to the embeddings of each stage, in order, and return it.

        Raises:
            ValueError: If a stage has too few training samples for the router.
        """
        router.set_vision_width(self.module.backbone.vision_width)
        for stage in self.state.plan:
            rows = self.embeddings(stage)
            if problem := too_few(len(rows), type(router).__name__, router.least_samples):
                raise ValueError(f"stage {stage.name!r} {problem}")
            if self.state.is_global_zero:
                router.fit(stage.expert, rows)
        router.load_state_dict(broadcast(router.state_dict()))
        router.updates = self.updates
        return router

    def fit_names(self, router: GenerativeRouter) -> GenerativeRouter:
        """Train the adapter of a router on samples of all stages, and return the router.

        The samples are drawn from the training data as after the last stage of a run. The
        optimizer is AdamW with the learning rate of the run.

        Raises:
            ValueError: If all tasks share an expert, two names have the same tokens, or a loss is
                not finite.
        """
        if (common := self.module.router.common) is not None:
            raise ValueError(
                f"--router mr_lora: the tasks of {self.run} share the expert {common!r}"
            )
        make = functools.partial(torch.optim.AdamW, lr=_learning_rate(self.run), weight_decay=0.01)
        fit_names(self.state, self.module, router, self.samples, make)
        router.load_state_dict(broadcast(router.state_dict()))
        router.updates = self.updates
        return router


def _learning_rate(run: Path) -> float:
    """Return the learning rate of a run's experts."""
    path = run / "config.yaml"
    model = read_config(path)["model"] if path.is_file() else {}
    try:
        return float(model["optimizer"]["init_args"]["lr"])
    except (KeyError, TypeError, ValueError):
        log.info("%s states no learning rate: the router's adapter trains at %g", run, LR)
        return LR


def check_comparable(state: SequenceState, module: ContinualModule, run: Path) -> None:
    """Raise unless the run has an expert for each task, and samples to fit routers to.

    Args:
        state: Has the data, and the stages of the run.
        module: Has the router of the run.
        run: The run folder.

    Raises:
        ValueError: If routers cannot be compared; says why.
    """
    router = module.router
    if not router.selects_experts:
        kind = type(router).__name__
        raise ValueError(
            f"--router needs a run with an expert for each task that answers alone: the "
            f"{kind} of {run} selects none"
        )
    if router.mixing is not None and router.common is None:
        raise ValueError(
            f"--router: the {type(router).__name__} of {run} weighs experts by token, which no "
            "other router can be compared with"
        )
    if not state.plan:
        raise ValueError(f"--router: {run} has learned no task")
    for stage in state.plan:
        if not stage.tasks:
            raise ValueError(
                f"--router: the expert {stage.expert!r} of {run} has no training samples here, "
                "since its task is not among data.tasks"
            )


def compare_routers(
    state: SequenceState,
    module: ContinualModule,
    refit: RunRefit,
    names: Sequence[str],
    answer: Answer,
) -> list[RouterRow]:
    """Fit routers, answer the test samples under each of them and write the tables.

    A sample is answered once for each gate set that a router gives it.

    Args:
        state: Has the last stage; its run folder receives the tables.
        module: Has the experts; its router is the same afterwards.
        refit: The run.
        names: Routers of `dmole.routing.comparison.ROUTERS`.
        answer: Answers the samples of an evaluation pass.

    Returns:
        The run's own router as it was saved, then the others.
    """
    saved, matrix = module.router, state.callback_of(EvaluationMatrix)
    tasks = [task for task in state.data.tested_task_names if task in state.seen_tasks()]
    if not tasks:
        raise ValueError("--router: no learned task has test samples")
    rows, counts, oracle_last = [], [], None
    try:
        for name in (AS_SAVED, *names):
            log.info("router %s", name)
            module.router = saved if name == AS_SAVED else _joined(saved, ROUTERS[name](refit))
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


def _draws(state: SequenceState) -> dict[tuple[int, str, tuple[str, ...]], Draw]:
    """Return the rule that draws the samples of each stage that the run's stream plans."""
    if not state.stream.planned:
        return {}
    stages = state.stream.stages(state.data.training_task_names)
    return {(stage.index, stage.expert, stage.tasks): stage.draw for stage in stages}


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
