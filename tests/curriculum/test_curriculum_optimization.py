"""Parameter groups by module, and the learning rate over a stage in closed form."""

from __future__ import annotations

import doctest
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from dmole.curriculum import optimization
from dmole.curriculum.optimization import (
    clip_gradients,
    learning_rate_factor,
    parameter_groups,
    scaled_learning_rates,
)


def test_docstring_examples_hold() -> None:
    result = doctest.testmod(optimization)
    assert result.attempted
    assert result.failed == 0


def test_groups_are_named_after_their_module_in_the_order_of_the_data() -> None:
    tensors = [nn.Parameter(torch.ones(i)) for i in range(1, 5)]
    modules = ["language", "vision", "language", "vision"]
    groups = parameter_groups(zip(modules, tensors, strict=True))
    assert [group["name"] for group in groups] == ["vision", "language"]
    assert [p.numel() for p in groups[0]["params"]] == [2, 4]
    assert [p.numel() for p in groups[1]["params"]] == [1, 3]


@pytest.mark.parametrize("steps", [1, 2, 7, 100])
@pytest.mark.parametrize("warmup", [0.0, 0.03, 0.5])
def test_schedules_have_their_closed_forms(steps: int, warmup: float) -> None:
    rising = math.ceil(warmup * steps)
    for step in range(steps + 3):
        progress = min(1.0, (step - rising) / max(1, steps - rising))
        expected = {
            "constant": 1.0,
            "linear": 1 - progress,
            "cosine": (1 + math.cos(math.pi * progress)) / 2,
        }
        for schedule, value in expected.items():
            found = learning_rate_factor(step, steps, warmup, schedule)
            assert found == pytest.approx((step + 1) / rising if step < rising else value)
            assert 0.0 <= found <= 1.0


def test_the_first_step_is_never_without_effect_and_the_peak_is_reached() -> None:
    for schedule in ("cosine", "linear", "constant"):
        factors = [learning_rate_factor(step, 20, 0.25, schedule) for step in range(20)]
        assert factors[0] > 0
        assert max(factors) == factors[4] == factors[5] == 1.0
        assert factors == sorted(factors[:5]) + sorted(factors[5:], reverse=True)


OPTIMIZERS = {
    "SGD": lambda groups: torch.optim.SGD(groups, lr=0.1),
    "SGD with momentum": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9),
    "Adam": lambda groups: torch.optim.Adam(groups, lr=0.1),
    "AdamW": lambda groups: torch.optim.AdamW(groups, lr=0.1, weight_decay=0.1),
}


def make(kind: str) -> tuple[torch.optim.Optimizer, list[nn.Parameter]]:
    torch.manual_seed(0)
    named = [("vision", nn.Parameter(torch.randn(6))), ("language", nn.Parameter(torch.randn(6)))]
    return OPTIMIZERS[kind](parameter_groups(named)), [p for _, p in named]


def updates(kind: str, scale: dict[str, float], steps: int = 1) -> list[list[torch.Tensor]]:
    """Return how far each step moved the parameters, under fixed gradients."""
    optimizer, parameters = make(kind)
    moves = []
    for _ in range(steps):
        before = [p.detach().clone() for p in parameters]
        for i, p in enumerate(parameters):
            p.grad = torch.linspace(-1, 2, 6) * (i + 1)
        with scaled_learning_rates(optimizer, scale):
            optimizer.step()
        moves.append([p.detach() - b for p, b in zip(parameters, before, strict=True)])
    return moves


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_factor_scales_the_update_of_its_module_and_of_no_other(kind: str) -> None:
    ((vision, language),) = updates(kind, {})
    ((scaled, same),) = updates(kind, {"vision": 0.1})
    torch.testing.assert_close(scaled, 0.1 * vision, rtol=1e-4, atol=1e-6)
    assert torch.equal(same, language)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_factor_is_restored_does_not_compound_and_is_not_saved(kind: str) -> None:
    optimizer, parameters = make(kind)
    before = [group["lr"] for group in optimizer.param_groups]
    for _ in range(3):
        for p in parameters:
            p.grad = torch.ones(6)
        with scaled_learning_rates(optimizer, {"vision": 0.1, "language": 2.0}):
            assert [group["lr"] for group in optimizer.param_groups] == [
                pytest.approx(0.01),
                pytest.approx(0.2),
            ]
            optimizer.step()
    assert [group["lr"] for group in optimizer.param_groups] == before
    assert [group["lr"] for group in optimizer.state_dict()["param_groups"]] == before


def test_a_factor_of_zero_stops_weight_decay_too() -> None:
    ((vision, language),) = updates("AdamW", {"vision": 0.0})
    assert not vision.any()
    assert language.any()


def test_rates_are_restored_when_the_step_fails() -> None:
    optimizer, _ = make("Adam")

    def fail() -> None:
        with scaled_learning_rates(optimizer, {"vision": 0.5}):
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fail()
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.1]


@pytest.mark.parametrize(
    ("limit", "algorithm", "expected"),
    [
        (2.5, None, [1.5, 2.0]),
        (2.5, "norm", [1.5, 2.0]),
        (2.5, "value", [2.5, 2.5]),
        (9.0, "norm", [3.0, 4.0]),
        *((limit, algorithm, [3.0, 4.0]) for limit in (None, 0) for algorithm in ("norm", "value")),
    ],
)
def test_gradients_are_clipped_as_the_trainer_says(
    limit: float | None, algorithm: str | None, expected: list[float]
) -> None:
    with_gradient, without = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(2))
    with_gradient.grad = torch.tensor([3.0, 4.0])
    trainer: Any = SimpleNamespace(gradient_clip_val=limit, gradient_clip_algorithm=algorithm)
    assert clip_gradients(trainer, [with_gradient, without]) == 5.0
    assert with_gradient.grad.tolist() == pytest.approx(expected, rel=1e-5)
    assert without.grad is None
