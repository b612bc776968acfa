"""Paired differences between each method and a reference method of a comparison."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dmole.metrics.matrix import Array
from dmole.metrics.paired import PairedDifference, paired_differences
from dmole.report.columns import Group
from dmole.report.runs import Run
from dmole.report.sample_scores import (
    Reason,
    SampleScores,
    check_same_samples,
    read_sample_scores,
)

Seeds = tuple[int, ...]


@dataclass(frozen=True)
class PairedRow:
    """The differences of one method.

    Args:
        seeds: Seeds that both methods have, in order.
        ahead: In how many of them the Last of the method is higher than that of the reference.
        last: Difference in Last, the mean over the tasks.
        tasks: Difference in each task.
        missing: Why a difference is not known, by task.
    """

    seeds: Seeds
    ahead: int
    last: PairedDifference
    tasks: Mapping[str, PairedDifference]
    missing: Mapping[str, Reason] = field(default_factory=dict)


@dataclass(frozen=True)
class PairedTable:
    """The differences of all methods to one of them.

    Args:
        reference: The method that the others are compared with.
        tasks: Names of the tasks to learn.
        rows: Differences by method, without the reference.
    """

    reference: str
    tasks: list[str]
    rows: Mapping[str, PairedRow]


NO_SEED = "no seed in common with the reference"


def check_reference(groups: Group, reference: str) -> None:
    """Refuse a reference that is no method of the comparison, or its only one.

    Raises:
        ValueError: If there is no such method, or no other one.
    """
    if reference not in groups:
        raise ValueError(f"unknown reference {reference!r}; choose from {', '.join(groups)}")
    if len(groups) < 2:
        raise ValueError(f"no other method to compare with the reference {reference!r}")


def paired_table(groups: Group, reference: str) -> PairedTable:
    """Return the differences of all methods to the reference; see `dmole.metrics.paired`.

    Runs are paired by seed: a method is compared over the seeds that it shares with the reference.

    Args:
        groups: Runs by method.
        reference: One of the methods.

    Raises:
        ValueError: If the reference is unknown or the only method, predictions cannot be read, or
            two runs of one seed have other test samples.
    """
    check_reference(groups, reference)
    scores = {run.folder: read_sample_scores(run) for runs in groups.values() for run in runs}
    tasks = groups[reference][0].tasks_to_learn
    others = {method: _pairs(groups[reference], runs) for method, runs in groups.items()}
    del others[reference]
    rows: dict[str, PairedRow] = {}
    for seeds in dict.fromkeys(tuple(pairs) for pairs in others.values()):
        methods = {method: pairs for method, pairs in others.items() if tuple(pairs) == seeds}
        if seeds:
            rows |= _rows(seeds, methods, tasks, scores)
            continue
        for method in methods:
            texts = (f"{name}: {_seed_names(groups[name])}" for name in (method, reference))
            rows[method] = _no_row(tasks, Reason(NO_SEED, "; ".join(texts)))
    return PairedTable(reference, tasks, {method: rows[method] for method in others})


def _seed_names(runs: Sequence[Run]) -> str:
    return ", ".join("no seed" if run.seed is None else str(run.seed) for run in runs)


def _no_row(tasks: Sequence[str], reason: Reason) -> PairedRow:
    nothing = dict.fromkeys(tasks, PairedDifference())
    return PairedRow((), 0, PairedDifference(), nothing, dict.fromkeys(tasks, reason))


Pairs = Mapping[int, tuple[Run, Run]]
"""Run of the reference and run of the method, by seed."""


def _pairs(reference: Sequence[Run], runs: Sequence[Run]) -> Pairs:
    """Return the pairs of runs with the same seed, in the order of the seeds."""
    known = {run.seed: run for run in reference}
    pairs = {run.seed: (known[run.seed], run) for run in runs if run.seed in known}
    return {seed: pairs[seed] for seed in sorted(s for s in pairs if s is not None)}


def _rows(
    seeds: Seeds,
    methods: Mapping[str, Pairs],
    tasks: Sequence[str],
    scores: Mapping[Path, SampleScores],
) -> dict[str, PairedRow]:
    """Return the rows of the methods that share these seeds with the reference."""
    differences = [_differences(task, [*methods.values()], scores) for task in tasks]
    last, by_task = paired_differences(differences)
    return {
        method: PairedRow(
            seeds,
            sum(run.figure("Last") > other.figure("Last") for other, run in pairs.values()),
            last[index],
            {task: each[index] for task, each in zip(tasks, by_task, strict=True)},
            _missing(pairs, tasks, scores),
        )
        for index, (method, pairs) in enumerate(methods.items())
    }


def _differences(task: str, methods: Sequence[Pairs], scores: Mapping[Path, SampleScores]) -> Array:
    """Return the differences in a task, ``(methods, seeds, samples)``; NaN is missing.

    The samples are those of all seeds: a part of the test samples is drawn for each seed.
    """
    references = [scores[run.folder].of_task.get(task, {}) for run, _ in methods[0].values()]
    ids = dict.fromkeys(id_ for each in references for id_ in each)
    columns = {id_: index for index, id_ in enumerate(ids)}
    found = np.full((len(methods), len(references), max(1, len(columns))), math.nan)
    for method, pairs in enumerate(methods):
        for seed, (reference, run) in enumerate(pairs.values()):
            theirs, own = (scores[each.folder].of_task.get(task) for each in (reference, run))
            if theirs is None or own is None:
                continue  # without the scores of one run there is no mean over the others
            check_same_samples(reference, run, task, (theirs, own))
            at = [columns[id_] for id_ in theirs]
            found[method, seed, at] = [own[id_] - score for id_, score in theirs.items()]
    return found


def _missing(
    pairs: Pairs, tasks: Sequence[str], scores: Mapping[Path, SampleScores]
) -> dict[str, Reason]:
    """Return the first reason of each task that a pair of runs lacks, the reference's before."""
    runs = [run for pair in zip(*pairs.values(), strict=True) for run in pair]
    reasons = [scores[run.folder].missing for run in runs]
    return {
        task: next(each[task] for each in reasons if task in each)
        for task in tasks
        if any(task in each for each in reasons)
    }
