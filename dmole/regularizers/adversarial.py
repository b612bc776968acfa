"""Parts of a game against a task classifier: a gradient that turns round, a masked mean."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def reverse_gradient(x: Tensor, scale: float = 1.0) -> Tensor:
    r"""Return ``x`` itself, whose gradient is turned round and scaled on the way back.

    .. math:: y = x, \qquad \partial L / \partial x = -\lambda \, \partial L / \partial y

    What comes after learns to lower the loss and what comes before to raise it.

    Args:
        x: Any shape.
        scale: The :math:`\lambda`; 0 lets no gradient through.

    Source:
        Domain-adversarial training, 2016, https://arxiv.org/abs/1505.07818. MoE-CL, 2025,
        https://arxiv.org/abs/2509.18133, turns the classifier's gradient after the backward pass
        instead.

    Example:
        >>> x = torch.ones(1, requires_grad=True)
        >>> reverse_gradient(x, 0.5).sum().backward()
        >>> x.grad
        tensor([-0.5000])
    """
    turned: Tensor = _Reversal.apply(x, scale)  # type: ignore[no-untyped-call]
    return turned


class _Reversal(torch.autograd.Function):
    """Identity with gradient ``-scale``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return -ctx.scale * grad, None


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of each sample's tokens that count.

    Args:
        x: Shape ``(B, T, D)``.
        mask: ``(B, T)`` true where a token counts.

    Returns:
        Shape ``(B, D)`` in the dtype of ``x``, summed in float32; zero where no token counts.

    Raises:
        ValueError: If the shapes do not fit together.

    Source:
        MoE-CL, 2025, https://arxiv.org/abs/2509.18133 (authors' code: mean over non-pad tokens).

    Example:
        >>> masked_mean(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[1, 1, 0]]))
        tensor([[2.]])
    """
    if x.ndim != 3 or mask.shape != x.shape[:2]:
        raise ValueError(
            f"expected x (B, T, D) and mask (B, T), got {tuple(x.shape)} and {tuple(mask.shape)}"
        )
    counts = mask.bool().unsqueeze(-1)  # (B, T, 1)
    wide = torch.promote_types(x.dtype, torch.float32)
    total = x.masked_fill(~counts, 0.0).sum(dim=1, dtype=wide)
    return (total / counts.sum(dim=1).clamp_min(1)).to(x.dtype)
