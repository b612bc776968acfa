"""Results of an evaluation: their files, and those other than its row of the matrix."""

from __future__ import annotations

import math
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from dmole.benchmarks.registry import build_metric
from dmole.callbacks.expert_allocation import ExpertAllocation
from dmole.metrics import write_matrix
from dmole.metrics.routing_rates import partner_rate, routing_rates
from dmole.routing import gate_set_name
from dmole.run.run_files import RunFile
from dmole.storage.files import write_csv, write_json, write_lines
from dmole.storage.predictions import predictions_file, stage_lines
from dmole.storage.versions import newest_versions, versions_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from dmole.data import Sample
    from dmole.metrics import TaskScore
    from dmole.metrics.routing_rates import Count
    from dmole.module import ContinualModule
    from dmole.routing import Router
    from dmole.run.context import EvaluationPass
    from dmole.run.state import SequenceState

METRICS = "metrics.json"
ROUTING = "routing.csv"
HEADER = ("stage", "true_task", "gate_set", "count", "phase")


def matrix_file(
    name: str,
    matrix: npt.NDArray[np.float64],
    tasks: Sequence[str],
    eval_limit: int | None = None,
) -> RunFile:
    """Return the file of a matrix, ``(stages, tasks)``; see `dmole.metrics.write_matrix`."""
    return RunFile(name, lambda run: write_matrix(run / name, matrix, tasks, eval_limit))


def subsample_facts(state: SequenceState, errors: npt.NDArray[np.float64]) -> dict[str, Any]:
    """Return what ``metrics.json`` says of scores on a part of the test samples.

    Args:
        state: Has the data.
        errors: Standard error of each score so far, ``(stages, tasks)``; NaN is not known.
    """
    data = state.data
    columns = zip(data.column_names, errors.T.tolist(), strict=True)
    return {
        "eval_limit": data.eval_limit,
        "seed": data.seed,
        "test_samples": {
            task: [len(data.test_samples(task)), data.test_size(task)]
            for task in data.tested_task_names
        },
        "standard_error": {
            task: [None if math.isnan(error) else error for error in column]
            for task, column in columns
        },
    }


def metrics_file(metrics: Mapping[str, Any] | None) -> RunFile:
    """Return ``metrics.json``; its content is not known if ``metrics`` is None."""
    if metrics is None:
        return RunFile(METRICS)
    return RunFile(METRICS, lambda run: write_json(run / METRICS, metrics))


def routing_file(tested: Iterable[Count], trained: Iterable[Count]) -> RunFile:
    """Return ``routing.csv``, with the counts of test samples, then those of training samples."""
    counts = [(*row, "test") for row in tested] + [(*row, "train") for row in trained]

    def write(run: Path) -> None:
        write_csv(run / ROUTING, HEADER, (dict(zip(HEADER, row, strict=True)) for row in counts))

    return RunFile(ROUTING, write)


def predictions(stage: int, tasks: Mapping[str, Iterable[Mapping[str, Any]]]) -> RunFile:
    """Return the file of the predictions of a stage.

    Args:
        stage: Index of the stage.
        tasks: Lines of each task, see :func:`prediction_lines`, in the order of the columns.
    """
    name = predictions_file(stage)
    return RunFile(name, lambda run: write_lines(run / name, stage_lines(tasks)))


def prediction_lines(
    samples: Iterable[Sample],
    texts: Sequence[str],
    gate_sets: Sequence[tuple[str, ...]],
    score: TaskScore,
) -> Iterator[dict[str, Any]]:
    """Yield the lines of a task in the file of predictions.

    Args:
        samples: Test samples of the task.
        texts: Answer to each sample.
        gate_sets: Experts of each sample.
        score: Score of the task.
    """
    rows = zip(samples, texts, gate_sets, score.per_sample, strict=True)
    for index, (sample, text, gate_set, value) in enumerate(rows):
        line = {
            "id": sample.id,
            "prompt": sample.prompt,
            "prediction": text,
            "references": list(sample.references),
            "score": value,
            "gate_set": gate_set_name(gate_set),
        }
        yield line | score.of_sample(index, sample.metadata)


def constant_answers(state: SequenceState) -> dict[str, dict[str, Any]]:
    """Return what the most frequent reference of each task scores as the answer to all samples.

    A score below it says that a model has learned less than the distribution of the answers.

    Returns:
        ``{"answer": text, "score": percent}`` by task. A reference counts once for each sample
        that accepts it; the first of the most frequent ones is taken. A task is left out if its
        samples lack what its metric needs for that answer, such as the size of an image.
    """
    found = {}
    for task in state.data.tested_task_names:
        samples = state.data.test_samples(task)
        counts = Counter(text for sample in samples for text in dict.fromkeys(sample.references))
        if counts:
            answer = counts.most_common(1)[0][0]
            facts = [sample.metadata for sample in samples]
            references = [sample.references for sample in samples]
            metric = build_metric(state.data.task(task).metric)
            with suppress(ValueError):
                score = metric.score([answer] * len(facts), references, facts).value
                found[task] = {"answer": answer, "score": score}
    return found


def unparsable_answers(scores: Mapping[str, TaskScore]) -> str:
    """Return how many answers of each task its metric could not read; empty if it read all.

    Args:
        scores: The score of each task.
    """
    counts = {task: score.details.get("unparsable", 0) for task, score in scores.items()}
    return ", ".join(
        f"{task} {count} of {len(scores[task].per_sample)}"
        for task, count in counts.items()
        if count
    )


def router_rates(
    state: SequenceState, router: Router, counts: Iterable[Count], trained: Iterable[Count]
) -> dict[str, float | None]:
    """Return the shares of correctly and wrongly routed samples, see `dmole.metrics.routing_rates`.

    Args:
        state: Has the learned stages.
        router: Knows the versions of experts; the newest one is that of its task.
        counts: Test samples by gate set.
        trained: Training samples by gate set.
    """
    learned_at: dict[str, int] = {}
    trains: dict[int, tuple[str, ...]] = {}
    for stage in state.learned():
        learned_at |= {task: stage.index for task in stage.tasks if task not in learned_at}
        trains[stage.index] = stage.experts
    rows = [row for row in counts if not _awaits_update(state, learned_at, *row[:2])]
    rates = routing_rates(rows, task_experts(state, router), learned_at, state.stage.common)
    return rates | {"trained_with_partner": partner_rate(trained, trains)}


def task_experts(state: SequenceState, router: Router) -> dict[str, str]:
    """Return the expert of each learned task, in its newest version.

    Args:
        state: Has the learned stages.
        router: Knows the versions of experts.
    """
    expert_of: dict[str, str] = {}
    for stage in state.learned():
        expert_of |= dict.fromkeys(stage.tasks, stage.expert)
    newest = newest_versions(expert_of.values(), router.updates)
    return {task: newest[expert] for task, expert in expert_of.items()}


def _awaits_update(
    state: SequenceState, learned_at: Mapping[str, int], stage: int, task: str
) -> bool:
    """Return whether a task updates one that is learned at a stage, and is not yet learned itself.

    Its samples are neither seen nor those of an unseen task: the earlier version may accept them.
    """
    later = stage + 1
    first = versions_of(task, state.data.predecessors)[-1]
    return learned_at.get(first, later) <= stage < learned_at.get(task, later)


def run_sizes(state: SequenceState, module: ContinualModule) -> dict[str, Any]:
    """Return the sizes of the run: rank and scaling of an expert, samples of an optimizer step."""
    allocator, trainer = module.allocator, state.trainer
    return {
        "rank": allocator.rank,
        "rank_factor": allocator.rank_factor,
        "expert_rank": allocator.expert_rank,
        "scaling": module.alpha / allocator.rank,
        "batch_size": state.data.batch_size,
        "max_tokens_per_batch": state.data.max_tokens_per_batch,
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "processes": state.world_size,
    }


def expert_starts(
    state: SequenceState, module: ContinualModule
) -> dict[str, dict[str, str | None]]:
    """Return where each learned expert started, if any started from a past one or could have.

    Returns:
        ``{"starts_from": name of the past expert}`` by expert; None is a fresh start. Empty if all
        starts are fresh by configuration, and where an evaluation loaded the experts of a finished
        run.
    """
    if module.allocator.start == "fresh" and not state.data.predecessors:
        return {}
    parents = state.callback_of(ExpertAllocation).parents()
    learned = {name for stage in state.learned() for name in stage.experts}
    return {name: {"starts_from": parents[name]} for name in parents if name in learned}


def count_active(state: SequenceState, module: ContinualModule, routed: EvaluationPass) -> None:
    """Record the parameters that an average test sample uses, base model included."""
    sizes = {name: module.library.count(name) for name in routed.experts or ()}
    used = sum(sizes[name] for gate_set in routed.gate_sets.values() for name in gate_set)
    base = module.backbone.parameter_count()
    active = base + used / max(1, len(routed.gate_sets))
    state.clock.costs.record(base=base, total=base + sum(sizes.values()), active=active)
