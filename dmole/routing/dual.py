"""Parallel experts weighed by a router on each token and by what the sample's task uses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dmole.experts.shape import ExpertShape
from dmole.routing.mixing import Mixing, _logits, _record

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dmole.experts.expert import LoRAExpert
    from dmole.experts.gates import Gates
    from dmole.experts.lora import RoutedLinear


class DualMixing(Mixing):
    r"""Parallel experts of all tasks, weighed by an instance router and a task router.

    .. math:: y = W x + s \sum_i \left( \beta\, p_i(x) + (1 - \beta)\, u_i^t \right) B_i A_i x,
        \qquad p = \text{softmax}(W_g x)

    with the shares :math:`u^t` of use by task :math:`t`, which
    :class:`~dmole.regularizers.momentum.MomentumMerge` records after its stage. Until then
    the weights are :math:`p`.

    Args:
        beta: Share of the instance router, in ``[0, 1]``.

    Raises:
        ValueError: If ``beta`` is out of range.

    Source:
        CL-MoE, 2025, https://arxiv.org/abs/2503.00413 (authors' code, which trains with the
        instance router alone and has the task's shares typed in by hand for the test).
    """

    def __init__(self, beta: float = 0.5) -> None:
        if not 0 <= beta <= 1:
            raise ValueError(f"beta must be in [0, 1], got {beta}")
        self.beta = beta

    def shape(self, rank: int, alpha: float, experts: int, *, common: bool) -> ExpertShape:
        """Return the experts and their router if common, else the record of a task's use.

        See :meth:`Mixing.shape`.
        """
        if common:
            return ExpertShape(rank * experts, alpha * experts, heads=experts)
        return ExpertShape(0, alpha, branches=0, usage=experts)

    def __call__(
        self, linear: RoutedLinear, x: Tensor, experts: Mapping[str, LoRAExpert], gates: Gates
    ) -> dict[str, Tensor]:
        """Return the weights of the shared experts."""
        weights = {}
        use = self._use(linear, x, experts, gates)  # (rows, 1, N), if any
        for name, expert in experts.items():
            if not expert.shape.heads:
                continue
            probabilities = _logits(x, expert).softmax(dim=-1)  # (rows, ..., N)
            both = probabilities
            if use is not None:
                mixed = self.beta * probabilities + (1 - self.beta) * use
                both = torch.where(use.sum(dim=-1, keepdim=True) > 0, mixed, probabilities)
            weights[name] = both
            if gates.recording:
                _record(linear, x, gates, probabilities, both)
        return weights

    def _use(
        self, linear: RoutedLinear, x: Tensor, experts: Mapping[str, LoRAExpert], gates: Gates
    ) -> Tensor | None:
        """Return the shares of use by each row's task, zero where they are not recorded yet."""
        total = None
        for name, expert in experts.items():
            if expert.shape.usage and name in gates.live:
                rows = gates.row_weights(linear.modality, name, x).float()[:, None]  # (rows, 1)
                use = rows * expert.usage.float()  # (rows, N)
                total = use if total is None else total + use
        if total is None:
            return None
        return total.reshape(len(total), *[1] * (x.ndim - 2), total.shape[-1])
