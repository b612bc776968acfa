"""The remaining time follows from what the run has measured, and is absent before that."""

from __future__ import annotations

import doctest

import pytest

import dmole.run.closing
import dmole.run.remaining
from dmole.run.clock import Clock, Lap
from dmole.run.closing import cost_lines, figure_lines
from dmole.run.remaining import Forecast, Remaining, Running, duration

AMOUNTS = {
    (0, "evaluate"): 40,
    **{
        (stage, phase): samples
        for stage, trained in ((1, 100), (2, 300))
        for phase, samples in (("train", trained), ("router", 10), ("evaluate", 40))
    },
}
BEFORE = [Lap(0, "zero-shot", "evaluate", 20.0)]
FIRST = [Lap(1, "a", "train", 50.0), Lap(1, "a", "router", 3.0), Lap(1, "a", "evaluate", 8.0)]


def at(laps: list[Lap], current: tuple[int, str]) -> Forecast:
    return Forecast(AMOUNTS, [(lap.stage, lap.phase) for lap in laps], laps, current)


def test_nothing_is_estimated_before_anything_was_measured() -> None:
    assert at([], (0, "evaluate")).remaining() == Remaining(None, None)
    assert at(BEFORE, (1, "train")).remaining() == Remaining(None, None)


def test_the_running_phase_counts_by_its_own_speed() -> None:
    running = Running(seconds=10.0, done=0.25, left=0.5)  # resumed at a quarter
    # 20 s of training, 0.5 s for each of 40 answers as before training; no router was fitted yet
    remaining = at(BEFORE, (1, "train")).remaining(running)
    assert remaining.stage == pytest.approx(20 + 20)
    # the second stage trains three times as many samples in 3 x 40 s, and answers again
    assert remaining.sequence == pytest.approx(20 + 20 + 120 + 20)


def test_finished_phases_of_earlier_stages_are_scaled_by_their_samples() -> None:
    remaining = at(BEFORE + FIRST, (2, "train")).remaining()
    assert remaining.stage == pytest.approx(3 * 50 + 3 + 8)
    assert remaining.sequence == remaining.stage


def test_a_pass_before_training_does_not_slow_down_the_estimate_of_later_ones() -> None:
    laps = BEFORE + FIRST + [Lap(2, "b", "train", 1.0), Lap(2, "b", "router", 1.0)]
    assert at(laps, (2, "evaluate")).remaining().stage == pytest.approx(8)


def test_an_evaluation_without_tasks_takes_no_time() -> None:
    running = Running(seconds=10.0, done=0.5, left=0.5)
    amounts = {(1, "train"): 10, (1, "evaluate"): 0}
    assert Forecast(amounts, (), (), (1, "train")).remaining(running) == Remaining(10.0, 10.0)


def test_a_run_without_stages_to_train_ends_with_its_evaluation() -> None:
    running = Running(seconds=3.0, done=0.75, left=0.25)
    forecast = Forecast({(0, "evaluate"): 8}, (), (), (0, "evaluate"))
    assert forecast.remaining(running) == Remaining(1.0, 1.0)


@pytest.mark.parametrize(
    ("seconds", "text"), [(59.6, "~1 min"), (3570, "~1 h"), (3 * 86400, "~3 d"), (0.0, "~1 s")]
)
def test_a_duration_has_no_zero_and_no_sixty(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_closing_lines_fit_a_narrow_terminal_and_show_missing_figures_as_dashes() -> None:
    clock = Clock()
    phases = ("train", "router", "evaluate")
    clock.laps = [Lap(1, "a", phase, 123456.7) for phase in phases]
    clock.costs.record(trainable={"a": 123_456_789, "b": 987_654_321})
    figures = {"Last": 100.0, "AVG": float("nan"), "BWT": -100.0}
    lines = [*figure_lines(figures), *cost_lines(clock)]
    assert lines[1].split() == ["routed", "100.00", "-", "-100.00"]
    assert lines[2].split() == ["oracle", "-", "-", "-"]
    assert len({len(line) for line in lines[:3]}) == 1
    assert max(map(len, lines)) <= 80


def test_the_examples_of_the_docstrings_hold() -> None:
    for module in (dmole.run.remaining, dmole.run.closing):
        assert doctest.testmod(module).failed == 0
