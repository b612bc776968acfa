from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from dmole.regularizers import reverse_gradient


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0])
def test_features_climb_the_loss_that_the_classifier_descends(scale: float) -> None:
    features, classifier = nn.Linear(3, 4), nn.Linear(4, 2)
    x, target = torch.randn(5, 3), torch.randint(2, (5,))
    parameters = [*features.parameters(), *classifier.parameters()]

    def gradients(turn: bool) -> list[torch.Tensor]:
        hidden = features(x)
        hidden = reverse_gradient(hidden, scale) if turn else hidden
        loss = nn.functional.cross_entropy(classifier(hidden), target)
        return list(torch.autograd.grad(loss, parameters))

    plain, turned = gradients(False), gradients(True)
    for before, after in zip(plain[:2], turned[:2], strict=True):
        assert_close(after, -scale * before)
    for before, after in zip(plain[2:], turned[2:], strict=True):
        assert_close(after, before)


def test_the_way_forward_is_the_identity() -> None:
    x = torch.randn(2, 3)
    assert torch.equal(reverse_gradient(x, 0.3), x)


def test_the_gradient_of_the_gradient_is_turned_too() -> None:
    x = torch.randn(3, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(reverse_gradient(x, 2.0).pow(3).sum(), x, create_graph=True)
    assert_close(first, -2 * 3 * x**2)
    assert first.requires_grad
