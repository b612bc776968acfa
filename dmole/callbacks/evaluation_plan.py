"""Plans an evaluation: the experts of each test sample, and the samples that need an answer."""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING

from dmole.callbacks.answers import DECODING, ORDERED, WEIGHTS, AnswerBook, GateSet, read_journal
from dmole.callbacks.embedding import embed_samples
from dmole.callbacks.measuring import MeasuredSamples
from dmole.callbacks.task_naming import name_samples
from dmole.models.identity import NUMERICS
from dmole.routing import GenerativeRouter, RouteQuery
from dmole.run.context import EvaluationPass
from dmole.run.settings import mixing_settings
from dmole.storage.versions import newest_versions

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from dmole.module import ContinualModule
    from dmole.run.state import SequenceState

Losses = dict[str, dict[str, list[float]]]
"""Reconstruction losses by expert and true task."""
Weights = dict[str, tuple[float, ...]]
"""Weights of the experts of a sample, by its name, where they are not all 1."""


def plan_routed(
    state: SequenceState,
    module: ContinualModule,
    answers: AnswerBook,
    tasks: Sequence[str],
    measured: MeasuredSamples,
    name: str = "routed",
) -> EvaluationPass:
    """Route the test samples of some tasks among the experts of the stages so far.

    Args:
        state: Has data and stages; its stage is evaluated.
        module: Has experts and router.
        answers: Answers that need not be generated again.
        tasks: The tasks.
        measured: Losses of the samples that need not be computed again.
        name: Name of the pass.

    Raises:
        Interrupted: If a signal requested the end of the run.
    """
    trained = {name for stage in state.learned() for name in stage.experts}
    experts = tuple(name for name in module.library.names if name in trained)
    gate_sets: dict[str, GateSet] = {}
    weights: Weights = {}
    losses: Losses = {}
    for task in tasks:
        gate_sets |= _route(state, module, experts, task, weights, losses, measured)
    digests = {
        DECODING: decoding_digest(state, module),
        **{name: module.library.digest(name) for name in experts},
    }
    if any(map(module.library.has_prompt, experts)):
        digests[ORDERED] = "soft prompts"
    if weights:
        digests[WEIGHTS] = _weights_digest(module, weights)
    evaluation = EvaluationPass(
        name=name,
        experts=experts,
        gate_sets=gate_sets,
        weights=weights,
        digests=digests,
        answer_lengths={task.name: task.max_new_tokens for task in state.data.tasks},
        losses=losses,
    )
    return _with_pending(state, evaluation, tasks, answers)


def plan_oracle(
    state: SequenceState, module: ContinualModule, routed: EvaluationPass, answers: AnswerBook
) -> EvaluationPass:
    """Give each sample of a seen task the experts that the task's last stage was trained with.

    An expert with later versions is replaced by the newest one.

    Args:
        state: Has data and stages.
        module: Has the router, which returns the experts used together with an expert.
        routed: The routed pass, with the same experts.
        answers: Answers that need not be generated again.
    """
    gate_sets: dict[str, GateSet] = {}
    experts = routed.experts or ()
    tested = state.data.tested_task_names
    seen = [task for task in state.seen_tasks() if task in tested]
    for task in seen:
        expert = next(s.expert for s in reversed(state.learned()) if task in s.tasks)
        newest = newest_versions(experts, module.router.updates)[expert]
        trained_with = module.router.trained_with(newest, experts)
        gate_sets |= dict.fromkeys(sample_names(state, task), trained_with)
    digests = {key: value for key, value in routed.digests.items() if key != WEIGHTS}
    evaluation = replace(
        routed, name="oracle", gate_sets=gate_sets, weights={}, digests=digests, losses={}
    )
    return _with_pending(state, evaluation, seen, answers)


def decoding_digest(
    state: SequenceState, module: ContinualModule, tasks: Collection[str] | None = None
) -> str:
    """Return a SHA-256 of all that answers depend on besides samples and experts.

    Args:
        state: Has tasks and precision.
        module: Has the base model.
        tasks: Tasks whose longest answers count; None for all.
    """
    parts = state.base_parts(module)  # every rank needs them, unlike the weights
    content = {
        "base": {name: part["sha256"] for name, part in parts.items() if name != NUMERICS},
        "answer_lengths": {
            task.name: task.max_new_tokens
            for task in state.data.tasks
            if tasks is None or task.name in tasks
        },
        "precision": str(state.trainer.precision),
    }
    if mixing := mixing_settings(module.router):
        content["mixing"] = mixing
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def sample_names(state: SequenceState, task: str) -> list[str]:
    """Return the names of a task's test samples, ``task/test/id``, unique over tasks."""
    return [f"{task}/test/{sample.id}" for sample in state.data.test_samples(task)]


def journal_of(state: SequenceState, evaluation: EvaluationPass) -> tuple[Path, str]:
    """Return the file of this rank's journal of a pass, and the name of the pass in it."""
    file = f"answers_{evaluation.name}_{state.trainer.global_rank}.jsonl"
    name = f"run {state.run_id} stage {state.stage.index} {evaluation.name}"
    return state.run_dir / "checkpoints" / file, name


def _with_pending(
    state: SequenceState, evaluation: EvaluationPass, tasks: Sequence[str], answers: AnswerBook
) -> EvaluationPass:
    plan, digests = evaluation.gate_sets, evaluation.digests
    pending = {task: answers.missing(sample_names(state, task), plan, digests) for task in tasks}
    return replace(
        evaluation,
        pending={task: indices for task, indices in pending.items() if indices},
        earlier_answers=read_journal(*journal_of(state, evaluation), plan, digests),
    )


def _weights_digest(module: ContinualModule, weights: Weights) -> str:
    """Return a SHA-256 of the weights of all samples, and of where they count."""
    content = [module.router.averages, weights]
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _route(
    state: SequenceState,
    module: ContinualModule,
    experts: Sequence[str],
    task: str,
    weights: Weights,
    losses: Losses,
    measured: MeasuredSamples,
) -> dict[str, GateSet]:
    """Return the router's gate sets for a task's test samples; add their weights and losses."""
    keys = sample_names(state, task)
    embeddings = measures = named = None  # (N, D), (N, C), N
    query = RouteQuery(None, (), "test", None, experts)
    if (meter := module.router.meter(query)) is not None:
        measures = measured.of(state, module, meter, task)
    elif isinstance(module.router, GenerativeRouter) and module.router.asks(query):
        pairs = [(sample, task) for sample in state.data.test_samples(task)]
        named = name_samples(state, module, module.router, pairs, experts)
    elif module.router.needs(query):
        pairs = [(sample, task) for sample in state.data.test_samples(task)]
        embeddings = embed_samples(state, module, pairs, "test")
    plan: dict[str, GateSet] = {}
    size = state.data.eval_batch_size
    for start in range(0, len(keys), size):  # the batch matters to routers with a batch vote
        part = slice(start, start + size)
        of_batch = replace(
            query,
            task_names=[task] * len(keys[part]),
            embeddings=None if embeddings is None else embeddings[part],  # (B, D)
            measures=None if measures is None else measures.rows(part),
            named=None if named is None else named[part],
        )
        routing = module.router.route(of_batch)
        plan |= dict(zip(keys[part], routing.order, strict=True))
        of_sample = zip(keys[part], routing.weights(experts), strict=True)
        weights |= {key: values for key, values in of_sample if values}
        if routing.losses is not None:  # (B, E)
            for expert, column in zip(experts, routing.losses.T, strict=True):
                losses.setdefault(expert, {}).setdefault(task, []).extend(column.tolist())
    return plan
