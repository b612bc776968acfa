from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus
from torch.testing import assert_close

from dmole.regularizers import first_order_hypergradient, importance_weights


def test_untrained_weights_are_plain_replay() -> None:
    assert_close(importance_weights(torch.full((5,), 0.7), torch.ones(5)), torch.ones(5))


def test_weights_sum_to_the_samples_times_the_common_strength() -> None:
    strength = softplus(torch.tensor(-1.0))
    weights = importance_weights(torch.randn(6), strength.expand(6))
    assert_close(weights.mean(), strength)


def test_a_higher_score_or_strength_weighs_more() -> None:
    scores, strengths = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([1.0, 1.0, 0.0])
    weights = importance_weights(scores, strengths)
    assert weights[0] > weights[1] > weights[2] == 0
    assert_close(weights[0] / weights[1], torch.tensor(1.0).exp())


def test_a_helpful_sample_rises_and_a_harmful_one_falls() -> None:
    g = torch.tensor([1.0])
    scores = torch.zeros(2, requires_grad=True)
    weights = importance_weights(scores, torch.ones(2))
    weights.backward(first_order_hypergradient([g], [[g], [-g]], step=0.1))
    stepped = importance_weights(scores.detach() - scores.grad, torch.ones(2))
    assert stepped[0] > 1 > stepped[1]


def test_identical_samples_keep_equal_weights() -> None:
    sample = [torch.randn(3), torch.randn(2, 2)]
    found = first_order_hypergradient([torch.randn(3), torch.randn(2, 2)], [sample] * 4, 0.1)
    assert_close(found, found[:1].expand(4))


def losses(theta: Tensor) -> tuple[Tensor, Tensor]:
    """Validation loss and the losses of three samples, all curved."""
    inputs = torch.tensor([[1.0, -2.0], [0.5, 0.3], [-1.0, 1.5]], dtype=torch.float64)
    samples = torch.nn.functional.softplus(inputs @ theta) + 0.1 * theta.square().sum()
    return (theta - torch.tensor([1.0, -1.0])).pow(4).sum(), samples


def unrolled(weights: Tensor, theta: Tensor, step: float) -> Tensor:
    (gradient,) = torch.autograd.grad((weights * losses(theta)[1]).sum(), theta)
    return (theta - step * gradient).detach()


@pytest.mark.parametrize(("step", "at_the_start"), [(0.1, False), (1e-6, True)])
def test_it_is_the_finite_difference_of_one_unrolled_step(step: float, at_the_start: bool) -> None:
    theta = torch.tensor([0.4, 0.2], dtype=torch.float64, requires_grad=True)
    weights = torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64)
    samples = [torch.autograd.grad(loss, theta, retain_graph=True) for loss in losses(theta)[1]]
    end = theta if at_the_start else unrolled(weights, theta, step).requires_grad_()
    validation = torch.autograd.grad(losses(end)[0], end)
    found = first_order_hypergradient(validation, samples, step)
    for index, width in enumerate(1e-4 * torch.eye(3, dtype=torch.float64)):
        up, down = (losses(unrolled(weights + w, theta, step))[0] for w in (width, -width))
        assert_close(found[index], (up - down) / 2e-4, rtol=1e-4, atol=0)


def test_no_samples_have_no_gradient() -> None:
    assert first_order_hypergradient([torch.ones(1)], [], 0.1).shape == (0,)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shapes \[\(3,\)\], the validation loss \[\(2,\)\]"):
        first_order_hypergradient([torch.ones(2)], [[torch.ones(3)]], 0.1)
    with pytest.raises(ValueError, match=r"got \(2,\) and \(3,\)"):
        importance_weights(torch.ones(2), torch.ones(3))
