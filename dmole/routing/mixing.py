"""Weights of the experts within a linear: token by token, or once per sequence.

The gates of a batch select the experts that a sample may use. A mixing weighs them by the input,
with small routers that are part of the linears and train with the experts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dmole.experts.gates import MixingRecord
from dmole.experts.lora import flat_linear
from dmole.experts.shape import ExpertShape
from dmole.routing.token_gates import TokenGate, TopKGate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dmole.experts.expert import LoRAExpert
    from dmole.experts.gates import Gates
    from dmole.experts.lora import RoutedLinear


class Mixing(ABC):
    """Weighs the channels of a linear's experts."""

    needs_texts: bool = False
    """Whether it reads embeddings of the samples' instructions."""
    text_width: int | None = None
    """Width of these embeddings."""

    @abstractmethod
    def shape(self, rank: int, alpha: float, experts: int, *, common: bool) -> ExpertShape:
        """Return the shape of an expert in one linear.

        Args:
            rank: Rank of one low-rank update.
            alpha: Numerator of its scaling ``alpha / rank``.
            experts: Number of parallel updates that the allocation grants the linear.
            common: Whether all tasks share this expert.

        Raises:
            ValueError: If the mixing does not support this number.
        """

    @abstractmethod
    def __call__(
        self, linear: RoutedLinear, x: Tensor, experts: Mapping[str, LoRAExpert], gates: Gates
    ) -> dict[str, Tensor]:
        """Return weights by expert, ``(rows, ..., N)``; each covers ``channels / N`` channels."""


class TokenMixing(Mixing):
    r"""Parallel experts, weighed for each token by a router in the linear.

    .. math:: y = W x + s \sum_i g_i(x) B_i A_i x, \qquad g = \text{gate}(\text{softmax}(W_g x))

    A linear with a single expert has no router and is plain LoRA.

    Args:
        gate: Maps the router's logits to weights.

    Source:
        CoIN, 2024, https://arxiv.org/abs/2403.08350 (dense gate, authors' code); MoLA, 2024,
        https://arxiv.org/abs/2402.08562 (top-k gate, authors' code). Here ``A`` starts Kaiming
        uniform; CoIN's code draws it from N(0, 0.01^2).
    """

    def __init__(self, gate: TokenGate) -> None:
        self.gate = gate

    def shape(self, rank: int, alpha: float, experts: int, *, common: bool) -> ExpertShape:
        """Return ``experts`` parallel updates; see :meth:`Mixing.shape`."""
        heads = experts if experts > 1 else 0
        return ExpertShape(rank * experts, alpha * experts, heads=heads)

    def __call__(
        self, linear: RoutedLinear, x: Tensor, experts: Mapping[str, LoRAExpert], gates: Gates
    ) -> dict[str, Tensor]:
        """Return the gate's weights for every expert that has a router."""
        weights = {}
        for name, expert in experts.items():
            if not expert.shape.heads:
                continue
            decision = self.gate(_logits(x, expert))  # (rows, ..., N)
            weights[name] = decision.weights
            if gates.recording:
                _record(linear, x, gates, decision.probabilities, decision.weights)
        return weights


class CommonMixing(Mixing):
    r"""An expert shared by all tasks and the task's expert, weighed against each other by token.

    .. math:: y = W x + b_0 s B_0 A_0 x + b_1 s B_t A_t x, \qquad b = \text{softmax}(G x)

    Source:
        MoE-CL, 2025, https://arxiv.org/abs/2509.18133. There each expert is a complete
        feed-forward block and the two outputs are mixed; mixing in each linear is our cheaper
        variant.
    """

    def shape(self, rank: int, alpha: float, experts: int, *, common: bool) -> ExpertShape:
        """Return one update; the common expert also holds the router. See :meth:`Mixing.shape`."""
        refuse_several(self, experts)
        return ExpertShape(rank, alpha, heads=2 if common else 0)

    def __call__(
        self, linear: RoutedLinear, x: Tensor, experts: Mapping[str, LoRAExpert], gates: Gates
    ) -> dict[str, Tensor]:
        """Return the weight of the common expert and that of the others."""
        shared = {name: expert for name, expert in experts.items() if expert.shape.heads}
        weights = {}
        for name, expert in shared.items():
            both = _logits(x, expert).softmax(dim=-1)  # (rows, ..., 2): common, task
            weights = {other: both[..., 1:] for other in experts if other != name}
            weights[name] = both[..., :1]
            if gates.recording:
                _record(linear, x, gates, both, both, _mean_output(linear, x, expert, gates))
        return weights


class BranchMixing(Mixing):
    r"""One shared trunk, several branches, and a router per task that selects branches.

    .. math:: y = W x + s \sum_{i \in \text{top-}k(p)} p_i B_i A x, \qquad
        p = \text{softmax}(W_r^t x_0)

    with :math:`x_0` the first token of the sequence: one decision per sequence and linear. In a
    causal language model the first token sees no other token, so the choice there depends on the
    task alone.

    Args:
        top_k: Branches selected per decision.
        renormalize: Whether the weights of the selected branches sum to 1.

    Source:
        BranchLoRA, 2025, https://arxiv.org/abs/2506.02041, after secondary texts, since the code is
        not public; whether weights are renormalized is unknown.
    """

    def __init__(self, top_k: int = 2, renormalize: bool = False) -> None:
        self.gate = TopKGate(top_k, renormalize)

    def shape(self, rank: int, alpha: float, experts: int, *, common: bool) -> ExpertShape:
        """Return trunk and branches if common, else a router; see :meth:`Mixing.shape`."""
        if common:
            return ExpertShape(rank, alpha, branches=experts)
        return ExpertShape(0, alpha, branches=0, heads=experts)

    def __call__(
        self, linear: RoutedLinear, x: Tensor, experts: Mapping[str, LoRAExpert], gates: Gates
    ) -> dict[str, Tensor]:
        """Return the branches' weights from the router of each row's task."""
        routers = {name: expert for name, expert in experts.items() if expert.shape.heads}
        decisions = self._decide(linear, x, routers, gates)  # (rows, N)
        between = [1] * (x.ndim - 2)  # token axes of x, if any
        spread = decisions.reshape(len(decisions), *between, decisions.shape[-1])  # (rows, 1, N)
        weights = spread.expand(*x.shape[:-1], decisions.shape[-1])  # (rows, ..., N)
        return {name: weights for name, expert in experts.items() if not expert.shape.heads}

    def _decide(
        self, linear: RoutedLinear, x: Tensor, routers: Mapping[str, LoRAExpert], gates: Gates
    ) -> Tensor:
        """Return ``(rows, N)``; during generation the decision on the prompt is kept."""
        if linear.path in gates.decisions:
            return gates.decisions[linear.path]
        first = gates.first_tokens(linear.modality, x)  # (rows, width)
        total = first.new_zeros(())
        for name, expert in routers.items():
            decision = self.gate(_logits(first, expert))  # (rows, N)
            on = gates.row_weights(linear.modality, name, x)[:, None] if name in gates.live else 0.0
            total = total + decision.weights * on
            if gates.recording:
                record = MixingRecord(linear.path, decision.probabilities, decision.weights)
                gates.records.append(record)
        if not torch.is_grad_enabled():
            gates.decisions[linear.path] = total
        return total


def _logits(x: Tensor, expert: LoRAExpert) -> Tensor:
    """Return the router's logits ``(..., N)`` in float32, whatever the model's precision."""
    with torch.autocast(x.device.type, enabled=False):
        return flat_linear(x.float(), expert.router.float())


def _record(
    linear: RoutedLinear,
    x: Tensor,
    gates: Gates,
    probabilities: Tensor,
    weights: Tensor,
    output: Tensor | None = None,
) -> None:
    """Record the router's decisions for all tokens except padding."""
    flat = [tensor.reshape(-1, tensor.shape[-1]) for tensor in (probabilities, weights)]
    valid = gates.valid_positions(linear.modality, x)
    if valid is not None:
        flat = [tensor.index_select(0, valid) for tensor in flat]  # (M, N), M valid tokens
    gates.records.append(MixingRecord(linear.path, flat[0], flat[1], output))


def _mean_output(linear: RoutedLinear, x: Tensor, expert: LoRAExpert, gates: Gates) -> Tensor:
    """Return an expert's mean output over each row's valid tokens, ``(rows, out)`` float32.

    An update is linear, so its output for the mean input is the mean of its outputs. In half
    precision the sum over a long sequence would overflow.
    """
    with torch.autocast(x.device.type, enabled=False):
        low = flat_linear(_pooled(linear, x.float(), gates), expert.lora_a.float())  # (rows, rank)
        return flat_linear(low, expert.up.float()) * expert.scaling


def _pooled(linear: RoutedLinear, x: Tensor, gates: Gates) -> Tensor:
    """Return the mean over each row's valid tokens, ``(rows, width)``."""
    if x.ndim == 2:
        return x
    valid = gates.valid_tokens(linear.modality, x)
    if valid is None:
        return x.mean(dim=1)  # (rows, tokens, width) -> (rows, width)
    weight = valid.to(x.dtype)[..., None]  # (rows, tokens, 1)
    return (x * weight).sum(dim=1) / weight.sum(dim=1).clamp_min(1)  # a row may have none


def refuse_several(mixing: Mixing, experts: int) -> None:
    """Raise if the allocator gives a linear several experts of a task."""
    if experts != 1:
        raise ValueError(
            f"{type(mixing).__name__} takes one expert per linear and task, the allocator gives "
            f"{experts}: set its experts to 1"
        )
