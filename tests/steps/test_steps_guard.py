"""Gradients, parameters and optimizer states that are not finite never become an expert."""

from __future__ import annotations

import logging
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dmole.regularizers.replay_learner import ReplayLearner
from dmole.steps import finite
from dmole.steps.finite import NonFiniteError
from dmole.steps.guard import StepGuard

POSITION = "at step 3 of expert 'a'"


class Step:
    """Two parameters and an optimizer, and what a guard makes of their gradients."""

    def __init__(self, allowed: int = 0, make: Any = torch.optim.AdamW) -> None:
        self.named = {f"expert 'a' at fc{i} (lora_a)": nn.Parameter(torch.ones(2)) for i in (0, 1)}
        self.optimizer = make(list(self.named.values()), lr=0.1)
        self.guard = StepGuard(allowed)
        self.guard.enter(["t/train/s0", "t/train/s1"], first=True)

    def run(self, value: float, scaler: Any = None) -> bool:
        """Make a step in which one number of the gradients has a value."""
        for parameter in self.named.values():
            parameter.grad = torch.ones(2)
        last = list(self.named.values())[-1]
        assert last.grad is not None
        last.grad[1] = value
        admitted = self.guard.admits(self.named, self.optimizer, POSITION, scaler)
        self.optimizer.step()
        self.guard.check_result(self.named, self.optimizer, POSITION)
        self.guard.drain()
        return admitted

    def values(self) -> list[Tensor]:
        state = [v for entry in self.optimizer.state.values() for v in entry.values()]
        return [v.clone() for v in (*self.named.values(), *state)]


@pytest.mark.parametrize(
    ("value", "text"),
    [(math.nan, "is nan"), (-math.inf, "is -inf"), (1e30, "is as large as 1e\\+30")],
)
def test_a_gradient_that_is_not_finite_is_named_and_changes_nothing(
    value: float, text: str
) -> None:
    step = Step()
    step.run(1.0)
    before = step.values()
    pattern = (
        rf"the gradient of expert 'a' at fc1 \(lora_a\) {text}.* at step 3 of expert 'a'; "
        "samples: t/train/s0, t/train/s1; the step was not made"
    )
    with pytest.raises(NonFiniteError, match=pattern):
        step.run(value)
    assert all(torch.equal(a, b) for a, b in zip(before, step.values(), strict=True))


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad])
def test_so_many_steps_may_be_left_out_and_no_more(
    make: Any, caplog: pytest.LogCaptureFixture
) -> None:
    step = Step(allowed=2, make=make)
    step.run(1.0)
    before = step.values()
    with caplog.at_level(logging.WARNING, logger="dmole"):
        assert not step.run(math.nan)
        assert not step.run(math.inf)
    assert all(torch.equal(a, b) for a, b in zip(before, step.values(), strict=True))
    assert "skipped step 1 of at most 2: the gradient of expert 'a' at fc1" in caplog.text
    assert step.guard.skipped == 2
    records = step.guard.collect()
    assert [record["samples"] for record in records] == ["t/train/s0, t/train/s1"] * 2
    assert step.guard.collect() == []
    assert step.run(1.0)
    with pytest.raises(NonFiniteError):
        step.run(math.nan)


def test_a_resumed_stage_counts_the_steps_left_out_before() -> None:
    step = Step(allowed=1)
    step.guard.begin(skipped=1)
    with pytest.raises(NonFiniteError):
        step.run(math.nan)


def test_a_step_whose_loss_was_not_finite_is_left_out_though_its_gradient_is_finite() -> None:
    step = Step(allowed=1)
    for number, value in enumerate((1.0, math.inf, math.nan)):  # three micro-batches
        step.guard.enter([f"t/train/m{number}"], first=number == 0)
        step.guard.watch(torch.tensor(value), lambda value=value: f"the loss is {value}")
    before = step.values()
    assert not step.run(1.0)
    assert all(torch.equal(a, b) for a, b in zip(before, step.values(), strict=True))
    (record,) = step.guard.collect()
    assert record == {
        "reason": "the loss is inf",
        "samples": "t/train/m0, t/train/m1, t/train/m2",
    }
    step.guard.enter(["t/train/s2"], first=True)
    assert step.run(1.0)
    step.guard.watch(torch.tensor(math.nan), lambda: "the loss is nan")
    with pytest.raises(NonFiniteError, match="the loss is nan; samples: t/train/s2; the step was"):
        step.run(1.0)


def test_a_loss_that_is_not_finite_on_another_rank_ends_this_one_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(finite, "sum_over_ranks", lambda flags: flags + torch.tensor([0, 1.0, 0]))
    monkeypatch.setattr(finite, "gather_objects", lambda text: [text, text or "the loss is nan"])
    step = Step()
    with pytest.raises(NonFiniteError, match="the loss is nan on rank 1; samples"):
        step.run(1.0)


def test_a_state_that_a_step_made_infinite_ends_the_run() -> None:
    step = Step()
    state = {"exp_avg_sq": torch.tensor([1.0, math.inf])}
    step.optimizer.state[next(iter(step.named.values()))] = state
    step.guard.check_result(step.named, step.optimizer, POSITION)
    with pytest.raises(NonFiniteError, match="the optimizer's state 0/exp_avg_sq is inf after"):
        step.guard.drain()
    step.guard.drain()  # an error is raised once


def test_a_parameter_that_a_step_made_nan_ends_the_run() -> None:
    step = Step(make=torch.optim.SGD)
    step.optimizer.param_groups[0]["lr"] = math.inf
    with pytest.raises(NonFiniteError, match=r"fc0 \(lora_a\) is -inf after a step at step 3"):
        step.run(1.0)


def test_the_next_step_names_the_samples_of_the_one_with_a_bad_result() -> None:
    step = Step(allowed=3)
    next(iter(step.named.values())).data[0] = math.nan
    step.guard.check_result(step.named, step.optimizer, POSITION)
    step.guard.enter(["t/train/s2"], first=True)
    with pytest.raises(NonFiniteError, match=r"is nan after .* samples: t/train/s0, t/train/s1$"):
        step.run(1.0)


def test_the_skips_of_a_loss_scaler_are_normal_until_its_scale_is_one() -> None:
    step, scale = Step(), 2.0
    scaler = SimpleNamespace(get_scale=lambda: scale)
    assert not step.run(math.inf, scaler)
    assert (step.guard.scaler_skips, step.guard.skipped) == (1, 0)
    scale = 1.0
    with pytest.raises(NonFiniteError, match="is inf"):
        step.run(math.inf, scaler)


def test_a_learner_of_weights_refuses_a_gradient_that_is_not_finite() -> None:
    learner = ReplayLearner(16, 4, 2, learning_rate=1e-2, seed=0)
    gradients = [torch.zeros_like(p) for p in learner._named.values()]
    gradients[1][0] = math.nan
    with pytest.raises(NonFiniteError, match="ReplayImportance: the gradient of second is nan"):
        learner.step(gradients)
    assert all(torch.isfinite(p).all() for p in learner._named.values())
