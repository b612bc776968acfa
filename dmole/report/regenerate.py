"""Generates the answers that a run lacks for the section on thresholds, with its experts."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from dmole.benchmarks.registry import build_metric
from dmole.data import Sample
from dmole.datamodule import ContinualDataModule
from dmole.inference import Request, RoutedModel, load
from dmole.report.history import BASE
from dmole.report.page.record import RunRecord
from dmole.report.regenerated import (
    Regenerated,
    experts_digest,
    read_regenerated,
    write_regenerated,
)
from dmole.run.loading import build_data
from dmole.run.model_file import read_run_settings

log = logging.getLogger("dmole")

Order = tuple[str, ...]


def regenerate(run: Path, *, device: str | torch.device = "cpu") -> int:
    """Generate and score the answers that the thresholds of a report ask for and no stage gave.

    They are kept in ``regenerated.jsonl`` of the run folder, after each task.

    Args:
        run: The run folder.
        device: Device of base model and experts.

    Returns:
        The number of answers that were generated.

    Raises:
        ValueError: If the run cannot be routed again, or its base model or test samples are not
            those of the run; says why.
        FileNotFoundError: If a test file is missing; names it.
    """
    record = RunRecord(run)
    missing = missing_answers(record)
    if not any(missing.values()):
        return 0
    digests, data = record.digests, build_data(read_run_settings(run))
    assert digests is not None  # the run was routed again
    for task in missing:
        _check_samples(record, data, task)
    model = load(run, device=device)
    answers = read_regenerated(run, digests.files)
    for task, asked in missing.items():
        log.info("%s: generating %d answers", task, sum(map(len, asked)))
        for wanted in asked:
            answers += _answered(record, model, data, task, wanted, digests.files)
        write_regenerated(run, answers)
    return sum(len(wanted) for asked in missing.values() for wanted in asked)


def missing_answers(record: RunRecord) -> dict[str, list[dict[str, Order]]]:
    """Return the experts by sample whose answers are missing, task by task.

    A sample that lacks several answers is in several of the mappings of its task.

    Raises:
        ValueError: If the run cannot be routed again; says why.
    """
    again, history = record.rerouted, record.history
    if again is None or history is None or again.routing is None or again.problems:
        reason = next(iter(again.problems), "") if again is not None else ""
        why = reason or "it has no thresholds, or no test sample was routed by them"
        raise ValueError(f"{record.folder} cannot be routed again: {why}")
    found: dict[str, list[dict[str, Order]]] = {}
    for task, routed in again.tasks.items():
        known = history.known[task]
        rounds: list[dict[str, Order]] = []
        for at, name in enumerate(routed.ids):
            sets = {frozenset(order[at]): order[at] for order in routed.orders}
            lacking = [order for names, order in sets.items() if names not in known[name]]
            for turn, order in enumerate(lacking):
                if turn == len(rounds):
                    rounds.append({})
                rounds[turn][name] = order
        if routed.own and rounds:
            found[task] = rounds
    return found


def _check_samples(record: RunRecord, data: ContinualDataModule, task: str) -> None:
    """Raise unless the test samples of a task are there and those of the run."""
    data.test_samples(task)  # names the file if it is missing
    prints = (record.metrics or {}).get("fingerprints") or {}
    expected = ((prints.get("data") or {}).get(task) or {}).get("test")
    if data.fingerprint(("test",))[task].get("test") != expected:
        raise ValueError(f"the test samples of task {task!r} are not those of {record.folder}")


def _answered(
    record: RunRecord,
    model: RoutedModel,
    data: ContinualDataModule,
    task: str,
    wanted: Mapping[str, Order],
    files: Mapping[str, str],
) -> Iterator[Regenerated]:
    """Yield the answers to samples of a task, scored among the answers of the last stage.

    The score of a sample may depend on the rest of the set.
    """
    samples, history = data.test_samples(task), record.history
    assert history is not None  # checked before
    lines = record.predictions(history.stages[-1])[task]
    texts = {str(line.get("id")): str(line.get("prediction") or "") for line in lines}
    chosen = [sample for sample in samples if sample.id in wanted]
    length = data.task(task).max_new_tokens
    new: dict[str, str] = {}
    for start in range(0, len(chosen), data.eval_batch_size):
        part = chosen[start : start + data.eval_batch_size]
        requests = [_request(sample, length, wanted[sample.id]) for sample in part]
        replies = model.answer(requests)
        new |= {sample.id: reply.text for sample, reply in zip(part, replies, strict=True)}
    everything = [{**texts, **new}.get(sample.id, "") for sample in samples]
    metric = build_metric(data.task(task).metric)
    references = [sample.references for sample in samples]
    score = metric.score(everything, references, [sample.metadata for sample in samples])
    for sample, text, value in zip(samples, everything, score.per_sample, strict=True):
        if sample.id in wanted:
            order = wanted[sample.id]
            digest = experts_digest(order, files)
            yield Regenerated(task, sample.id, "+".join(order) or BASE, digest, text, value)


def _request(sample: Sample, length: int, order: Order) -> Request:
    """Return a sample as a request to some experts; the one that all share joins them by itself."""
    return Request(sample.turns, sample.images, length, order)
