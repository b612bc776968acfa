"""Scores of a part of the test samples: how far they may be from the scores of all."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dmole.metrics.matrix import Array

if TYPE_CHECKING:
    from typing_extensions import Self

    from dmole.metrics.base import TaskScore

KEY = "subsample"
"""Part of ``metrics.json`` that says that test samples were drawn, and how."""

_HEADER = re.compile(r"stage(?: \(eval_limit (\d{1,9})\))?")


def standard_error(score: TaskScore, population: int) -> float:
    """Return the standard error of a score as an estimate of the score on all test samples.

    It is ``s / sqrt(n) * sqrt(1 - n / N)``, with the sample standard deviation ``s`` of the scores
    of ``n`` samples, drawn from ``N`` without replacement (W. G. Cochran, Sampling Techniques).

    Args:
        score: Score of the drawn samples.
        population: Number of all test samples, ``N``.

    Returns:
        Percentage points; NaN for a single sample of several, and for a score that is no mean
        over samples.

    Example:
        >>> from dmole.metrics import TaskScore
        >>> standard_error(TaskScore(50.0, [0.0, 100.0, 0.0, 100.0]), population=8)
        20.412414523193153
    """
    values = np.asarray(score.per_sample, dtype=np.float64)  # (n,)
    count = len(values)
    if count >= population:
        return 0.0
    if count < 2 or not is_mean_of(values, score.value):
        return math.nan
    share = 1.0 - count / population
    return float(values.std(ddof=1) / math.sqrt(count) * math.sqrt(share))


def is_mean_of(values: Array, score: float) -> bool:
    """Return whether a score is the mean of the scores of its samples.

    Args:
        values: Scores of shape ``(samples,)``, percent.
        score: Score of the set, percent.
    """
    return math.isclose(float(values.mean()), score, abs_tol=1e-6)


@dataclass(frozen=True)
class Subsample:
    """The test samples that the scores of a run are of.

    Args:
        limit: Maximum number of test samples of a task.
        seed: Seed of the draw.
        errors: Standard error of each task's score at each stage; None is not known.
    """

    limit: int
    seed: int
    errors: Mapping[str, list[float | None]]

    @classmethod
    def of(cls, metrics: Mapping[str, Any]) -> Self | None:
        """Return what ``metrics.json`` states; None if all test samples were scored."""
        stated = metrics.get(KEY)
        if not stated:
            return None
        return cls(stated["eval_limit"], stated["seed"], stated.get("standard_error") or {})

    def error_of_last(self) -> float:
        """Return the standard error of the mean over the tasks of the last scores, or NaN."""
        last = [errors[-1] if errors else None for errors in self.errors.values()]
        known = [math.nan if error is None else error for error in last]
        return math.sqrt(sum(error**2 for error in known)) / max(1, len(known))

    def __str__(self) -> str:
        return f"at most {self.limit} a task, drawn with seed {self.seed}"


def first_header(limit: int | None) -> str:
    """Return the header of the first column of a matrix, which says that samples were drawn."""
    return "stage" if limit is None else f"stage (eval_limit {limit})"


def is_first_header(text: str) -> bool:
    """Return whether a text is the header of the first column of a matrix."""
    return _HEADER.fullmatch(text) is not None
