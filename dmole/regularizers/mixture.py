"""What keeps the routers within mixing layers in use: balance, and a bound on their entropy."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal, get_args

import torch
from torch import Tensor

from dmole.regularizers.base import Regularizer, Step
from dmole.routing.balance import load_balance, soft_load_balance
from dmole.routing.token_gates import EntropyKind, normalized_entropy

Over = Literal["mean", "sum", "pooled"]
"""How the terms of all routers become one."""


class _RouterTerm(Regularizer):
    """A term of each router's decisions in the batch, averaged or summed over the routers.

    Args:
        coefficient: Weight of the term; 0 leaves the loss as it is.
        over: ``mean`` over routers, their ``sum``, or ``pooled``: one term of all their tokens,
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
        """Return the weighted term; zero where no router was asked. See :class:`Regularizer`."""
        records = step.gates.records if step.gates is not None else []
        if not self.coefficient or not records:
            return step.logits.new_zeros((), dtype=torch.float32)
        if self.over == "pooled":
            if len({record.weights.shape[1] for record in records}) > 1:
                raise ValueError(f"{type(self).__name__}: pooled needs routers of equal size")
            joined = (
                torch.cat([record.probabilities for record in records]),
                torch.cat([record.weights for record in records]),
            )
            return self.coefficient * self.measure(*joined)
        found = torch.stack([self.measure(r.probabilities, r.weights) for r in records])
        return self.coefficient * (found.mean() if self.over == "mean" else found.sum())

    @abstractmethod
    def measure(self, probabilities: Tensor, weights: Tensor) -> Tensor:
        """Return the term of one router, from ``(M, N)`` of its tokens."""


class LoadBalance(_RouterTerm):
    r"""Asks every router to use its experts evenly, :math:`c N \sum_i f_i P_i`.

    Each rank balances its own tokens; padding does not count.

    Args:
        coefficient: The :math:`c`; 0 leaves the loss as it is.
        over: ``mean`` over routers, their ``sum``, or ``pooled`` (DynMoLE).
        soft: Take the mean weight for :math:`f`, with its gradient, instead of the share of
            (token, slot) pairs.

    Source:
        MoLA, 2024, https://arxiv.org/abs/2402.08562 (authors' code, sum); DynMoLE, 2025,
        https://arxiv.org/abs/2504.00661 (authors' code, soft).
    """

    def __init__(self, coefficient: float = 0.001, over: Over = "sum", soft: bool = False) -> None:
        super().__init__(coefficient, over)
        self.soft = soft

    def measure(self, probabilities: Tensor, weights: Tensor) -> Tensor:
        """Return 1 where experts are used evenly, more where not."""
        balance = soft_load_balance if self.soft else load_balance
        return balance(probabilities, weights)


class RouterEntropy(_RouterTerm):
    """Asks every router to be sure, by the mean normalized entropy of its tokens.

    Args:
        coefficient: Weight; 0 leaves the loss as it is.
        over: ``mean`` over routers, their ``sum``, or ``pooled``.
        index: Index of the entropy; 1 is Shannon's.
        entropy: ``tsallis`` or ``renyi``.

    Source:
        DynMoLE, 2025, https://arxiv.org/abs/2504.00661. The authors' code averages over padding
        too; here it does not count.
    """

    def __init__(
        self,
        coefficient: float = 0.01,
        over: Over = "mean",
        index: float = 1.1,
        entropy: EntropyKind = "tsallis",
    ) -> None:
        super().__init__(coefficient, over)
        normalized_entropy(torch.ones(1, 2) / 2, index, entropy)  # refuses what makes no sense
        self.index = index
        self.entropy: EntropyKind = entropy

    def measure(self, probabilities: Tensor, weights: Tensor) -> Tensor:
        """Return the mean entropy over the tokens."""
        return normalized_entropy(probabilities, self.index, self.entropy).mean()
