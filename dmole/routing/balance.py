"""How evenly a router spreads tokens over its experts. Pure functions, no model."""

from __future__ import annotations

import torch
from torch import Tensor


def load_balance(probabilities: Tensor, weights: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""Return how unevenly tokens are spread over the experts: 1 if evenly, ``N`` if collapsed.

    .. math:: N \sum_i f_i P_i

    with :math:`f_i` the share of (token, slot) pairs sent to expert :math:`i`, which sums to 1 and
    has no gradient, and :math:`P_i` the mean probability. MoE-PEFT sums :math:`f` over the
    :math:`k` slots instead, so that its value is :math:`k` times this one.

    Args:
        probabilities: Shape ``(M, N)``.
        weights: Shape ``(M, N)``; an expert is selected where its weight is not zero.
        mask: ``(M,)`` true where a token counts; None counts all.

    Returns:
        Scalar; zero where no token counts.

    Raises:
        ValueError: If the shapes do not fit together.

    Source:
        MoLA, 2024, https://arxiv.org/abs/2402.08562 (authors' code); leaving pad tokens out is
        MoE-PEFT's.

    Example:
        >>> even = torch.full((2, 2), 0.5)
        >>> load_balance(even, torch.eye(2)), load_balance(torch.eye(2)[:1], torch.eye(2)[:1])
        (tensor(1.), tensor(2.))
    """
    hits = _masked_mean((weights.detach() != 0).float(), mask, probabilities.shape)
    share = hits / hits.sum().clamp_min(torch.finfo(hits.dtype).tiny)
    return _balance(share, _masked_mean(probabilities, mask, probabilities.shape))


def soft_load_balance(probabilities: Tensor, weights: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""Return :math:`N \sum_i F_i P_i` with :math:`F_i` the mean weight, gradient included.

    Arguments, errors and the value of uniform dense routing are those of :func:`load_balance`;
    where weights are dropped without renormalising the value falls below 1.

    Source:
        DynMoLE, 2025, https://arxiv.org/abs/2504.00661 (authors' code).
    """
    share = _masked_mean(weights, mask, probabilities.shape)
    return _balance(share, _masked_mean(probabilities, mask, probabilities.shape))


def _balance(share: Tensor, mean: Tensor) -> Tensor:
    return mean.numel() * (share * mean).sum()


def _masked_mean(values: Tensor, mask: Tensor | None, shape: torch.Size) -> Tensor:
    """Mean of ``(M, N)`` over the rows that count."""
    if len(shape) != 2 or values.shape != shape or (mask is not None and mask.shape != shape[:1]):
        got = None if mask is None else tuple(mask.shape)
        raise ValueError(
            f"expected probabilities and weights (M, N) and mask (M,), "
            f"got {tuple(shape)}, {tuple(values.shape)} and {got}"
        )
    if mask is None:
        return values.mean(dim=0)
    counts = mask.bool()
    return values.masked_fill(~counts.unsqueeze(-1), 0.0).sum(dim=0) / counts.sum().clamp_min(1)
