from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from dmole.regularizers import masked_mean, reverse_gradient


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0])
def test_features_climb_the_loss_that_the_classifier_descends(scale: float):
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


def test_the_way_forward_is_the_identity():
    x = torch.randn(2, 3)
    assert torch.equal(reverse_gradient(x, 0.3), x)


def test_the_gradient_of_the_gradient_is_turned_too():
    x = torch.randn(3, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(reverse_gradient(x, 2.0).pow(3).sum(), x, create_graph=True)
    assert_close(first, -2 * 3 * x**2)
    assert first.requires_grad


def test_pad_tokens_are_left_out_of_the_mean_and_get_no_gradient():
    x = torch.randn(2, 4, 3, requires_grad=True)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]])
    mean = masked_mean(x, mask)
    assert_close(mean, torch.stack([x[0, :2].mean(0), x[1, :3].mean(0)]))
    mean.sum().backward()
    assert torch.equal(x.grad.abs().sum(-1) > 0, mask.bool())


def test_what_stands_in_pad_tokens_cannot_spoil_the_mean():
    x = torch.tensor([[[1.0], [torch.nan]], [[torch.inf], [torch.nan]]])
    mask = torch.tensor([[True, False], [False, False]])
    assert masked_mean(x, mask).tolist() == [[1.0], [0.0]]


def test_long_low_precision_rows_are_summed_in_float32():
    x = torch.ones(1, 5000, 1).bfloat16()
    mean = masked_mean(x, torch.ones(1, 5000, dtype=torch.bool))
    assert mean.dtype == torch.bfloat16
    assert mean.item() == 1


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"got \(1, 2, 3\) and \(1, 3\)"):
        masked_mean(torch.ones(1, 2, 3), torch.ones(1, 3))
