"""A linear with low-rank experts, each switched per sample.

::

             +--------------- base: W x (+ b) ---------------+
        x ---+                                               (+)--- y
             +-- A = [A_1; A_2; ...] -- * gates -- [B_1 B_2 ...] --+

    y = W x + sum_i g_i * (alpha_i / r_i) * B_i A_i dropout(x)

The experts are separate parameters, so that they can be frozen, saved and added one by one. All
experts that are active in the batch or in training are computed as one concatenated low-rank
product.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from dmole.experts.expert import LoRAExpert, expert_key, expert_name
from dmole.experts.plan import LayerPlan

if TYPE_CHECKING:
    from collections.abc import Mapping, Set

    from dmole.experts.gates import GateContext, Gates
    from dmole.modality import Modality


class ChannelMixing(Protocol):
    """Weighs channels by token; implemented in `dmole.routing.mixing`."""

    def __call__(
        self, linear: RoutedLinear, x: Tensor, experts: Mapping[str, LoRAExpert], gates: Gates
    ) -> dict[str, Tensor]:
        """Return weights by expert, ``(rows, ..., N)``; each covers ``channels / N`` channels."""


class RoutedLinear(nn.Module):
    """A frozen linear of the base model and its experts.

    Args:
        base: The linear of the base model; wrapped, never changed.
        context: Holds the gates of the current forward.
        modality: Part of the model that the linear is in.
        dropout: Probability of dropping an entry of the experts' input while training.
        mixing: Weighs the experts' channels token by token, in addition to the gates.
        path: Full path of the linear, for records.

    Attributes:
        learners: Names of the experts that may train; None if any may. The library sets it, so
            that a forward does not ask all experts.

    Source:
        D-MoLE (https://arxiv.org/abs/2506.11672): base output plus the plain sum of the active
        experts. Differs from the released code in that gates are per sample, not per batch.
    """

    def __init__(
        self,
        base: nn.Linear,
        context: GateContext,
        modality: Modality,
        dropout: float = 0.0,
        mixing: ChannelMixing | None = None,
        path: str = "",
    ) -> None:
        super().__init__()
        self.base = base
        self.modality = modality
        self.dropout = nn.Dropout(dropout)
        self._drops_out = dropout > 0
        self.experts = nn.ModuleDict()
        self.path = path
        self.learners: tuple[str, ...] | None = None
        self._context = context
        self._mixing = mixing

    @property
    def weight(self) -> Tensor:
        """Weight of the base linear; some models read the dtype of it."""
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        """Bias of the base linear."""
        return self.base.bias

    @property
    def in_features(self) -> int:
        """Width of the input."""
        return self.base.in_features

    @property
    def out_features(self) -> int:
        """Width of the output."""
        return self.base.out_features

    def expert(self, name: str) -> LoRAExpert:
        """Return an expert by name; KeyError if the linear does not hold it."""
        return cast("LoRAExpert", self.experts[expert_key(name)])

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the experts of this linear, in the order they were added."""
        return tuple(expert_name(key) for key in self.experts)

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated sum.

        Args:
            x: Input of shape ``(rows, ..., in_features)``.

        Returns:
            Tensor of shape ``(rows, ..., out_features)``.
        """
        out: Tensor = self.base(x)  # (rows, ..., out)
        gates = self._context.current
        if gates is None:
            return out
        gates = gates.of(self.path)
        if not (torch.is_grad_enabled() or (self._drops_out and self.dropout.training)):
            product = gates.products.get((self, x.shape))
            if product is not None and product.fits(out, x):
                return product.add_to(out, x)
        plan = self._plan(gates)
        if not plan.names:
            return out
        if self._mixing is None and plan.adds_to(out, x) and not self._drops():
            # the sum below with other rounding
            return plan.product(gates, self, x).add_to(out, x)
        x = self._expert_input(x, plan)
        partners = None if self._mixing else plan.frozen_by_row(gates, self.modality, x)
        if partners is not None:
            out = partners.sum_with(out, x)
            plan = plan.trained()
            if not plan.names:
                return out
        low = plan.tiled(plan.scaled(flat_linear(x, plan.down())))  # (rows, ..., channels)
        mask = gates.rank_mask(self.modality, plan.names, plan.channels, x)
        if mask is not None:
            low = low * mask.to(low.dtype)
        if self._mixing is not None:
            weights = self._mixing(self, x, plan.experts, gates)
            low = low * _joined_weights(weights, plan.experts, plan.names, low)
        return _sum(out, low, plan.up())

    def _drops(self) -> bool:
        return self._drops_out and self.dropout.training

    def _plan(self, gates: Gates) -> LayerPlan:
        """Return what this linear computes under some gates; made once for as long as they last.

        Where gradients are computed the weights may train, so they are joined in every forward.
        """
        fixed = not torch.is_grad_enabled()
        key = (self, fixed)
        if key not in gates.plans:
            gates.plans[key] = LayerPlan(self._computed(gates), keep=fixed)
        return gates.plans[key]

    def _computed(self, gates: Gates) -> dict[str, LoRAExpert]:
        """Return the experts of this linear that are computed, oldest first."""
        used = [name for name in gates.used if expert_key(name) in self.experts]
        # a trainable expert is computed even if no sample uses it: its parameters must be in the
        # graph of every rank, else distributed training waits for missing gradients
        unused = self._learning(gates.live) if torch.is_grad_enabled() else ()
        if unused:
            used = [name for name in self.names if name in unused or name in gates.live]
        return {name: self.expert(name) for name in used}

    def _learning(self, without: Set[str]) -> set[str]:
        """Return the experts that train, without some."""
        learners = self.names if self.learners is None else self.learners
        return {name for name in learners if name not in without and self.expert(name).learning}

    def _expert_input(self, x: Tensor, plan: LayerPlan) -> Tensor:
        """Return the input of the experts: with dropout, in the type of their weights."""
        x = self.dropout(x)
        return x if torch.is_autocast_enabled(x.device.type) else x.to(plan.dtype)


def flat_linear(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply ``(..., in)`` with ``(out, in)``, the rows flattened to one axis.

    With more axes torch selects the kernel by whether the weight is trainable, so the outputs of
    an expert would change in their last bits when it is frozen.
    """
    return F.linear(x.reshape(-1, x.shape[-1]), weight).reshape(*x.shape[:-1], weight.shape[0])


def _sum(out: Tensor, low: Tensor, up: Tensor) -> Tensor:
    """Return ``out + low @ up.T`` in the type of ``out``, with one kernel where types allow it."""
    if not out.dtype == low.dtype == up.dtype or torch.is_autocast_enabled(out.device.type):
        return out + flat_linear(low, up).to(out.dtype)
    flat = out.reshape(-1, out.shape[-1])
    return torch.addmm(flat, low.reshape(-1, low.shape[-1]), up.t()).view(out.shape)


def _joined_weights(
    weights: Mapping[str, Tensor], experts: Mapping[str, LoRAExpert], names: list[str], low: Tensor
) -> Tensor:
    """Return one factor per channel, ``(rows, ..., channels)``; 1 for experts without weights."""
    parts = []
    for name in names:
        width = experts[name].shape.channels
        weight = weights.get(name)
        parts.append(
            low.new_ones(*low.shape[:-1], width)
            if weight is None
            else weight.to(low.dtype).repeat_interleave(width // weight.shape[-1], dim=-1)
        )
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
