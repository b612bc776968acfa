"""Weights of replayed samples and their hypergradient. Pure functions, no model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def importance_weights(scores: Tensor, strengths: Tensor) -> Tensor:
    r"""Return the weights of the losses of ``n`` replayed samples.

    .. math:: w_i = n \, s_i \, \mathrm{softmax}(u)_i

    Equal scores and strengths of 1 give weights of 1, so untrained weights are plain replay.

    Args:
        scores: The :math:`u` of the samples, shape ``(n,)``.
        strengths: The :math:`s_i \ge 0` of each sample's task, shape ``(n,)``. They are a
            softplus of the learned parameter; the published ReLU has no gradient below zero.

    Returns:
        Shape ``(n,)``, float32 or wider.

    Raises:
        ValueError: If the shapes do not match.

    Source:
        BiGNAS, 2025, https://arxiv.org/abs/2504.07102 (authors' code); the factor :math:`n` and
        the use for replayed samples are ours.

    Example:
        >>> importance_weights(torch.zeros(3), torch.tensor([1.0, 1.0, 0.5]))
        tensor([1.0000, 1.0000, 0.5000])
    """
    if scores.ndim != 1 or strengths.shape != scores.shape:
        raise ValueError(
            f"expected scores (n,) and strengths (n,), "
            f"got {tuple(scores.shape)} and {tuple(strengths.shape)}"
        )
    wide = torch.promote_types(scores.dtype, torch.float32)
    return len(scores) * strengths * scores.softmax(dim=0, dtype=wide)


def first_order_hypergradient(
    validation: Sequence[Tensor], samples: Sequence[Sequence[Tensor]], step: float
) -> Tensor:
    r"""Return the derivative of the validation loss by the weight of each sample's loss.

    .. math::
        \theta' = \theta - \eta \sum_i w_i \nabla \ell_i(\theta), \qquad
        \frac{\partial L_{\text{val}}(\theta')}{\partial w_i}
        = -\eta \, \langle \nabla L_{\text{val}}(\theta'), \nabla \ell_i(\theta) \rangle

    The first-order form takes the gradient of the validation loss at :math:`\theta` instead of
    :math:`\theta'`.

    Args:
        validation: Gradient of the validation loss, one tensor per parameter.
        samples: Gradient of each of the ``n`` samples' losses, unweighted, in the same order.
        step: Learning rate :math:`\eta` of the inner step.

    Returns:
        Shape ``(n,)``, float32 or wider; negative where a sample helps.

    Raises:
        ValueError: If the gradients of a sample and of the validation loss differ in shape.

    Source:
        BiGNAS, 2025, https://arxiv.org/abs/2504.07102, without the terms of its series (the
        alignment form is ours).

    Example:
        >>> g = torch.ones(2)
        >>> first_order_hypergradient([g], [[g], [-g]], step=0.5)
        tensor([-1.,  1.])
    """
    products = [-step * _inner(validation, gradient) for gradient in samples]
    return torch.stack(products) if products else torch.zeros(0)


def _inner(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """Return the inner product over all parameters, at least float32."""
    if [part.shape for part in one] != [part.shape for part in other]:
        raise ValueError(
            f"a sample has gradients of shapes {[tuple(p.shape) for p in other]}, "
            f"the validation loss {[tuple(p.shape) for p in one]}"
        )
    total = torch.zeros(())
    for a, b in zip(one, other, strict=True):
        wide = torch.promote_types(a.dtype, torch.float32)
        total = total.to(a.device) + (a.to(wide) * b.to(wide)).sum()
    return total
