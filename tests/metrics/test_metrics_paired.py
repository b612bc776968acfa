"""Paired differences: what is resampled, and how often the intervals hold the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dmole.metrics.matrix import Array
from dmole.metrics.paired import PairedDifference, paired_differences


def of_one(*tasks: object) -> PairedDifference:
    """Return the difference in the mean over tasks of one method, from ``(seeds, samples)``."""
    arrays = [np.array([task], dtype=np.float64) for task in tasks]
    ((last,), _) = paired_differences(arrays)
    return last


def test_identical_methods_are_level() -> None:
    last = of_one([[0.0] * 5, [0.0] * 5])
    assert last == PairedDifference(0.0, 0.0, 0.0)
    assert last.verdict == "level"


@pytest.mark.parametrize(("shift", "verdict"), [(10.0, "better"), (-10.0, "worse")])
def test_a_shift_of_all_samples_is_certain(shift: float, verdict: str) -> None:
    last = of_one([[shift] * 7] * 3, [[shift] * 2] * 3)
    assert (last.value, last.low, last.high) == pytest.approx((shift, shift, shift))
    assert last.verdict == verdict


def test_the_interval_of_two_seeds_without_noise_of_samples_is_their_range() -> None:
    assert of_one([[10.0] * 4, [20.0] * 4]) == PairedDifference(15.0, 10.0, 20.0)  # each has 1/4
    assert of_one([[-10.0], [20.0]]).verdict == "level"


def test_seeds_are_drawn_once_for_all_tasks() -> None:
    tasks = [[10.0, 10.0], [-10.0, -10.0]], [[-10.0, -10.0], [10.0, 10.0]]
    assert of_one(*tasks) == PairedDifference(0.0, 0.0, 0.0)


def test_tasks_weigh_the_same_whatever_their_size() -> None:
    assert of_one([[30.0]], [[0.0, 0.0, 0.0]]) == PairedDifference(15.0, 15.0, 15.0)


def test_a_single_sample_has_an_interval_without_width() -> None:
    assert of_one([[100.0]]) == PairedDifference(100.0, 100.0, 100.0)


def test_the_interval_of_one_seed_has_the_quantiles_of_the_binomial_distribution() -> None:
    last = of_one([[0.0, 100.0] * 50])  # 97.5 % quantile of 100 coins: 60
    assert last.value == 50.0
    assert (last.low, last.high) == pytest.approx((40.0, 60.0), abs=1.0)


def test_seeds_with_the_same_samples_do_not_narrow_the_interval_and_others_do() -> None:
    samples = [0.0, 100.0] * 50
    own = np.full((4, 400), math.nan)  # four seeds with samples of their own
    for seed in range(4):
        own[seed, 100 * seed : 100 * (seed + 1)] = samples
    one, same, nested = of_one([samples]), of_one([samples] * 4), of_one(own)
    assert (same.value, same.low, same.high) == (one.value, one.low, one.high)
    assert nested.value == 50.0
    shares = 7 / 16  # expected sum of the squared shares of four drawn seeds
    width = math.sqrt(shares) * (one.high - one.low)
    assert nested.high - nested.low == pytest.approx(width, rel=0.05)


def test_a_bootstrap_sample_without_a_sample_of_a_seed_does_not_count() -> None:
    own = [[10.0, math.nan], [math.nan, 10.0]]  # one sample of its own for each seed
    assert of_one(own) == PairedDifference(10.0, 10.0, 10.0)


def test_other_methods_change_nothing_and_one_without_scores_has_no_result() -> None:
    tasks = list(np.random.default_rng(0).normal(size=(2, 3, 2, 50)))
    (_, second, third), (_, by_task) = paired_differences(tasks, 200)
    for task in tasks:
        task[0] = math.nan
    last, _ = paired_differences(tasks, 200)
    assert last[1:] == [second, third]
    assert last[0].verdict == "n/a"
    assert math.isnan(last[0].low)
    tasks[0][:] = math.nan  # no result in one task: none in the mean, but in the other
    last, (empty, known) = paired_differences(tasks, 200)
    assert {each.verdict for each in (*last, *empty)} == {"n/a"}
    assert known[1:] == by_task[1:]


def test_the_verdict_is_that_of_the_printed_interval() -> None:
    assert PairedDifference(1.0, 0.004, 2.0).verdict == "level"
    assert PairedDifference(1.0, 0.006, 2.0).verdict == "better"
    assert PairedDifference(-1.0, -2.0, -0.004).verdict == "level"
    assert PairedDifference(-1.0, -2.0, -0.006).verdict == "worse"


def coverage(differences: Array) -> float:
    """Return how many intervals hold the true difference 0; methods are simulations."""
    last, _ = paired_differences([differences], 400)
    return float(np.mean([each.low <= 0 <= each.high for each in last]))


def test_the_intervals_hold_the_true_difference() -> None:
    rng = np.random.default_rng(0)
    shape = (200, 5, 60)  # the mean has the variances 1/5, 1 and 1/5
    seeds, samples = rng.normal(size=(200, 5, 1)), rng.normal(size=(200, 1, 60)) * math.sqrt(60)
    rest = rng.normal(size=shape) * math.sqrt(60)
    assert 0.92 <= coverage(seeds + samples + rest) <= 0.985
    assert coverage(0.5 * (seeds + samples + rest) + 1.2) < 0.6  # a difference is found


def test_the_intervals_of_few_seeds_that_alone_differ_are_as_narrow_as_stated() -> None:
    rng = np.random.default_rng(0)
    for seeds, stated in ((2, 0.50), (3, 0.75), (5, 0.84)):
        found = coverage(rng.normal(size=(600, seeds, 1)))
        assert found == pytest.approx(stated, abs=0.04)
