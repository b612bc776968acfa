"""The score of each test sample of a run after its last stage."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dmole.messages import excerpt
from dmole.metrics.subsample import is_mean_of
from dmole.report.runs import Run
from dmole.storage.predictions import predicted_stages, predictions_file, read_stage

Scores = Mapping[str, float]
"""Score of each sample in percent, by its id."""


@dataclass(frozen=True)
class Reason:
    """Why a run has no scores of the samples of a task.

    Args:
        text: The reason, the same for all runs that it applies to.
        example: A run that it applies to, by method and seed, and what is wrong with it.
    """

    text: str
    example: str


@dataclass(frozen=True)
class SampleScores:
    """The scores of the test samples of a run after its last stage.

    Args:
        of_task: Scores of each task whose score is their mean.
        missing: Why a task has none.
    """

    of_task: Mapping[str, Scores] = field(default_factory=dict)
    missing: Mapping[str, Reason] = field(default_factory=dict)


NOT_WRITTEN = "no predictions of the last stage"
NOT_SCORED = "no score or no predictions of the task after the last stage"
NO_MEAN = "the score of the task is no mean over its samples, as with a metric of the whole set"


def read_sample_scores(run: Run) -> SampleScores:
    """Return the scores of the samples of all tasks to learn, from the predictions.

    A task has none if its predictions are missing, or if the mean of the scores of its samples is
    not its score in the evaluation matrix.

    Args:
        run: The run; full predictions and those with ``task``, ``id`` and ``score`` alone are read.

    Raises:
        ValueError: If the predictions cannot be read, a sample has no id or no score, or an id
            occurs twice in a task; names the file, the task and the sample.
    """
    stage, name = len(run.matrix) - 1, f"{run.method} with seed {run.seed}"
    file = run.folder / predictions_file(stage)
    if stage not in predicted_stages(run.folder):
        reason = Reason(NOT_WRITTEN, f"{name}: {predictions_file(stage)}")
        return SampleScores(missing=dict.fromkeys(run.tasks_to_learn, reason))
    lines = read_stage(run.folder, stage)
    of_task: dict[str, Scores] = {}
    missing: dict[str, Reason] = {}
    for task in run.tasks_to_learn:
        score = float(run.matrix[-1, run.task_names.index(task)])
        scores = _scores(f"{file}: task {excerpt(task)}", lines.get(task, ()))
        if math.isnan(score) or not scores:
            missing[task] = Reason(NOT_SCORED, name)
        elif not is_mean_of(values := np.array([*scores.values()]), score):
            means = f"{values.mean():.8g} over the samples, {score:.8g} in the matrix"
            missing[task] = Reason(NO_MEAN, f"{name}: {means}")
        else:
            of_task[task] = scores
    return SampleScores(of_task, missing)


def _scores(where: str, lines: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    scores: dict[str, float] = {}
    for line in lines:
        id_ = line.get("id")
        if not isinstance(id_, str):
            raise ValueError(f"{where}: the id of a sample must be text, got {excerpt(id_)}")
        if id_ in scores:
            raise ValueError(f"{where}: sample {excerpt(id_)} occurs twice")
        scores[id_] = _score(f"{where}: the score of sample {excerpt(id_)}", line.get("score"))
    return scores


def _score(what: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{what} must be a number, got {excerpt(value)}")
    return float(value)


def check_same_samples(one: Run, other: Run, task: str, scores: tuple[Scores, Scores]) -> None:
    """Refuse two runs as a pair if they have other test samples in a task.

    Raises:
        ValueError: If a sample of one is not among those of the other. The message names both runs,
            the task and a sample.
    """
    ids = scores[0].keys() ^ scores[1].keys()
    if ids:
        raise ValueError(
            f"{one.folder} and {other.folder} differ in the test samples of task {task!r}: "
            f"{len(scores[0])} and {len(scores[1])}, only one of them has {excerpt(min(ids))}; "
            "without --reference they are compared anyway"
        )
