"""Differences between the scores of methods, with intervals from a paired bootstrap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dmole.metrics.matrix import Array

RESAMPLES = 10_000
"""Number of bootstrap samples of an interval."""

LEVEL = 0.95
"""Nominal coverage of an interval."""

DECIMALS = 2
"""Decimals of a printed difference; the verdict is that of the printed interval."""

Verdict = Literal["better", "worse", "level", "n/a"]

_CELLS = 4_000_000  # numbers of a part of the bootstrap weights: 32 MB


@dataclass(frozen=True)
class PairedDifference:
    """The mean difference between two methods, and its interval, in percentage points.

    Args:
        value: Mean difference; NaN if it is not known.
        low: Lower end of the interval.
        high: Upper end of the interval.
    """

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan

    @property
    def verdict(self) -> Verdict:
        """Where the interval lies, to `DECIMALS` decimals: above 0, below 0, or around it."""
        if math.isnan(self.value):
            return "n/a"
        if round(self.low, DECIMALS) > 0:
            return "better"
        return "worse" if round(self.high, DECIMALS) < 0 else "level"


def paired_differences(
    differences: Sequence[Array], resamples: int = RESAMPLES, seed: int = 0
) -> tuple[list[PairedDifference], list[list[PairedDifference]]]:
    r"""Return the differences in the mean over tasks and in each task, with percentile intervals.

    With the difference :math:`d_{t,s,i}` between two methods in task :math:`t` of :math:`T`, for
    seed :math:`s` of :math:`S` and test sample :math:`i` of :math:`N_t`, a bootstrap sample is

    .. math:: \frac{1}{T} \sum_t \frac{1}{S} \sum_{s \in s^*} \frac{1}{N_t} \sum_{i \in i_t^*}
        d_{t,s,i}

    with :math:`S` seeds :math:`s^*`, drawn with replacement once for all tasks, and :math:`N_t`
    samples :math:`i_t^*`, drawn with replacement once for all seeds. The tasks are fixed.

    Samples count as nested in seeds where each seed has its own: a sample that a seed lacks is left
    out of the mean of this seed. The draws do not depend on which methods are given.

    Args:
        differences: For each task the differences between the scores of each method and those of
            the reference, in percentage points, of shape ``(methods, seeds, samples)``. NaN where a
            seed lacks a sample; a method with a seed of nothing but NaN has no result for the task,
            and none for the mean over tasks.
        resamples: Number of bootstrap samples.
        seed: Seed of the draws.

    Returns:
        One difference per method in the mean over tasks, and one per task and method.

    Source:
        The paired multi-bootstrap of Sellam et al., 2022, https://arxiv.org/abs/2106.16163; the
        pigeonhole bootstrap of Owen, 2007, https://doi.org/10.1214/07-AOAS122.

    Example:
        >>> difference = np.array([[[0.0, 100.0, 0.0, 100.0], [100.0, 0.0, 100.0, 100.0]]])
        >>> [(mean,), _] = paired_differences([difference])
        >>> mean.value, mean.low, mean.high, mean.verdict
        (62.5, 25.0, 100.0, 'better')
    """
    draws = [
        _draw_means(task, resamples, seeds=_rng(seed), samples=_rng(seed, number))
        for number, task in enumerate(differences, start=1)
    ]
    values = [np.array([_value(method) for method in task]) for task in differences]
    by_task = [_intervals(*pair) for pair in zip(values, draws, strict=True)]
    return _intervals(np.mean(values, axis=0), np.mean(draws, axis=0)), by_task


def _rng(seed: int, number: int = 0) -> np.random.Generator:
    """Return the generator of the samples of a task, numbered from 1; 0 is that of the seeds."""
    return np.random.default_rng((seed, number))


def _draw_means(
    task: Array, resamples: int, *, seeds: np.random.Generator, samples: np.random.Generator
) -> Array:
    """Return the mean difference of each method in each bootstrap sample, (methods, resamples)."""
    methods, count, size = task.shape
    drawn = _weights(seeds, resamples, count)  # (resamples, seeds)
    missing = np.isnan(task)
    rows = np.where(missing, 0.0, task).reshape(methods * count, size)
    known = (~missing).astype(np.float64).reshape(methods * count, size)
    parts = []
    step = max(1, _CELLS // size)
    for start in range(0, resamples, step):
        weights = _weights(samples, min(step, resamples - start), size)  # (part, samples)
        total = weights @ known.T if missing.any() else np.float64(1.0)
        with np.errstate(invalid="ignore"):  # no sample of a seed was drawn
            means = (weights @ rows.T / total).reshape(-1, methods, count)
        parts.append(np.einsum("bms,bs->mb", means, drawn[start : start + len(weights)]))
    return np.concatenate(parts, axis=1)


def _weights(rng: np.random.Generator, resamples: int, size: int) -> Array:
    """Return how often each of ``size`` things is drawn, divided by ``size``."""
    cells = rng.integers(size, size=(resamples, size)) + size * np.arange(resamples)[:, None]
    counts = np.bincount(cells.ravel(), minlength=resamples * size).reshape(resamples, size)
    weights: Array = counts / size
    return weights


def _value(method: Array) -> float:
    """Return the mean over seeds of the mean over their samples, of shape ``(seeds, samples)``."""
    known = [seed[~np.isnan(seed)] for seed in method]
    return float(np.mean([seed.mean() if seed.size else math.nan for seed in known]))


def _intervals(values: Array, draws: Array) -> list[PairedDifference]:
    """Return the percentile interval of each method; undefined bootstrap samples do not count."""
    tail = (1.0 - LEVEL) / 2
    intervals = []
    for value, row in zip(values.tolist(), draws, strict=True):
        defined = row[~np.isnan(row)]
        if math.isnan(value) or not defined.size:
            intervals.append(PairedDifference())
            continue
        low, high = np.quantile(defined, [tail, 1.0 - tail]).tolist()
        intervals.append(PairedDifference(value, low, high))
    return intervals
