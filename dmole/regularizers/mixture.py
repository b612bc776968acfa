"""Terms for the routers within mixing linears: load balance and entropy."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal, get_args

import torch
from torch import Tensor

from dmole.regularizers.base import Regularizer, Step
from dmole.routing.token_gates import EntropyKind, normalized_entropy

Over = Literal["mean", "sum", "pooled"]
"""Reduction of the terms of all routers to one."""


def load_balance(probabilities: Tensor, weights: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""Return the imbalance of tokens over the experts: 1 if even, ``N`` if collapsed.

    .. math:: N \sum_i f_i P_i

    with :math:`f_i` the share of (token, slot) pairs of expert :math:`i`, which sums to 1 and has
    no gradient, and :math:`P_i` the mean probability. MoE-PEFT sums :math:`f` over the
    :math:`k` slots instead, so its value is :math:`k` times this one.

    Args:
        probabilities: Shape ``(M, N)``.
        weights: Shape ``(M, N)``; an expert is selected where its weight is not zero.
        mask: ``(M,)`` true for valid tokens; None if all are valid.

    Returns:
        Scalar; zero without valid tokens.

    Raises:
        ValueError: If the shapes do not match.

    Source:
        MoLA, 2024, https://arxiv.org/abs/2402.08562 (authors' code); the exclusion of
        padding is MoE-PEFT's.

    Example:
        >>> even = torch.full((2, 2), 0.5)
        >>> load_balance(even, torch.eye(2)), load_balance(torch.eye(2)[:1], torch.eye(2)[:1])
        (tensor(1.), tensor(2.))
    """
    hits = _masked_mean((weights.detach() != 0).float(), mask, probabilities.shape)
    share = hits / hits.sum().clamp_min(torch.finfo(hits.dtype).tiny)  # (N,)
    return _balance(share, _masked_mean(probabilities, mask, probabilities.shape))


def soft_load_balance(probabilities: Tensor, weights: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""Return :math:`N \sum_i F_i P_i` with :math:`F_i` the mean weight, gradient included.

    Arguments, errors and the value for uniform dense routing are those of :func:`load_balance`.
    If weights are dropped without renormalization, the value may fall below 1.

    Source:
        DynMoLE, 2025, https://arxiv.org/abs/2504.00661 (authors' code).
    """
    share = _masked_mean(weights, mask, probabilities.shape)
    return _balance(share, _masked_mean(probabilities, mask, probabilities.shape))


class _RouterTerm(Regularizer):
    """A term of each router's decisions in the batch, averaged or summed over the routers.

    Args:
        coefficient: Weight of the term; 0 disables it.
        over: ``mean`` or ``sum`` over routers, or ``pooled``: one term over all their tokens,
            which needs routers of equal size.

    Raises:
        ValueError: If an argument is out of range.
    """

    records = True

    def __init__(self, coefficient: float, over: Over) -> None:
        super().__init__()
        if coefficient < 0:
            raise ValueError(f"coefficient must not be negative, got {coefficient}")
        if over not in get_args(Over):
            raise ValueError(f"over must be one of {get_args(Over)}, got {over!r}")
        self.coefficient = coefficient
        self.over = over

    def forward(self, step: Step) -> Tensor:
        """Return the weighted term; zero without router records. See :class:`Regularizer`."""
        records = step.gates.records if step.gates is not None else []
        if not self.coefficient or not records:
            return step.zero()
        if self.over == "pooled":
            if len({record.weights.shape[1] for record in records}) > 1:
                raise ValueError(f"{type(self).__name__}: pooled needs routers of equal size")
            joined = (
                torch.cat([record.probabilities for record in records]),
                torch.cat([record.weights for record in records]),
            )
            return self.coefficient * self.measure(*joined)
        terms = torch.stack([self.measure(r.probabilities, r.weights) for r in records])
        return self.coefficient * (terms.mean() if self.over == "mean" else terms.sum())

    @abstractmethod
    def measure(self, probabilities: Tensor, weights: Tensor) -> Tensor:
        """Return the term of one router, from ``(M, N)`` values of its tokens."""


class LoadBalance(_RouterTerm):
    r"""Penalizes uneven use of the experts by each router, :math:`c N \sum_i f_i P_i`.

    Each rank balances the tokens of each of its batches; padding is excluded. A step of several
    micro-batches or ranks descends the mean of their terms: a product of means is defined by the
    batch, and published so.

    Args:
        coefficient: The :math:`c`; 0 disables the term.
        over: ``mean`` or ``sum`` over routers, or ``pooled`` (DynMoLE).
        soft: Use the mean weight as :math:`f`, with its gradient, instead of the share of
            (token, slot) pairs.

    Source:
        MoLA, 2024, https://arxiv.org/abs/2402.08562 (authors' code, sum); DynMoLE, 2025,
        https://arxiv.org/abs/2504.00661 (authors' code, soft).
    """

    def __init__(self, coefficient: float = 0.001, over: Over = "sum", soft: bool = False) -> None:
        super().__init__(coefficient, over)
        self.soft = soft

    def measure(self, probabilities: Tensor, weights: Tensor) -> Tensor:
        """Return 1 if experts are used evenly, more otherwise."""
        balance = soft_load_balance if self.soft else load_balance
        return balance(probabilities, weights)


class RouterEntropy(_RouterTerm):
    """Penalizes uncertain routers by the mean normalized entropy over their tokens.

    Micro-batches and ranks are weighed by the tokens of the language model.

    Args:
        coefficient: Weight; 0 disables the term.
        over: ``mean`` or ``sum`` over routers, or ``pooled``.
        index: Index of the entropy; 1 is Shannon's.
        entropy: ``tsallis`` or ``renyi``.

    Source:
        DynMoLE, 2025, https://arxiv.org/abs/2504.00661. The authors' code includes padding in
        the mean; here it is excluded.
    """

    mean_over = "inputs"

    def __init__(
        self,
        coefficient: float = 0.01,
        over: Over = "mean",
        index: float = 1.1,
        entropy: EntropyKind = "tsallis",
    ) -> None:
        super().__init__(coefficient, over)
        normalized_entropy(torch.ones(1, 2) / 2, index, entropy)  # raises for invalid arguments
        self.index = index
        self.entropy: EntropyKind = entropy

    def measure(self, probabilities: Tensor, weights: Tensor) -> Tensor:
        """Return the mean entropy over the tokens."""
        return normalized_entropy(probabilities, self.index, self.entropy).mean()


def _balance(share: Tensor, mean: Tensor) -> Tensor:
    return mean.numel() * (share * mean).sum()


def _masked_mean(values: Tensor, mask: Tensor | None, shape: torch.Size) -> Tensor:
    """Return the mean of ``(M, N)`` over the valid rows."""
    if len(shape) != 2 or values.shape != shape or (mask is not None and mask.shape != shape[:1]):
        got = None if mask is None else tuple(mask.shape)
        raise ValueError(
            f"expected probabilities and weights (M, N) and mask (M,), "
            f"got {tuple(shape)}, {tuple(values.shape)} and {got}"
        )
    if mask is None:
        return values.mean(dim=0)
    valid = mask.bool()
    return values.masked_fill(~valid.unsqueeze(-1), 0.0).sum(dim=0) / valid.sum().clamp_min(1)
