"""A linear layer with low-rank experts, each switched per sample.

::

             +--------------- base: W x (+ b) ---------------+
        x ---+                                               (+)--- y
             +-- A = [A_1; A_2; ...] -- * gates -- [B_1 B_2 ...] --+

    y = W x + sum_i g_i * (alpha_i / r_i) * B_i A_i dropout(x)

The experts are separate parameters (to freeze, save and add them one by one) and are computed
as one concatenated low-rank product of those that are live in the batch or being trained.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

if TYPE_CHECKING:
    from dmole.experts.gates import GateContext, View


class LoRAExpert(nn.Module):
    """One expert in one layer: ``lora_b @ lora_a`` scaled by ``alpha / rank``.

    Args:
        base: The layer it adds to.
        rank: Rank ``r`` of the update.
        alpha: Numerator of the scaling.
        generator: Source of the initial ``lora_a`` (Kaiming uniform with ``a = sqrt(5)``);
            ``lora_b`` starts at zero, so a new expert changes nothing.

    Source:
        Hu et al. 2022, https://arxiv.org/abs/2106.09685, section 4.1.
    """

    def __init__(
        self, base: nn.Linear, rank: int, alpha: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        if rank < 1:
            raise ValueError(f"the rank of an expert must be at least 1, got {rank}")
        self.rank = rank
        self.alpha = alpha
        self.scaling = alpha / rank
        lora_a = torch.empty(rank, base.in_features)  # drawn on the CPU: the same on every device
        nn.init.kaiming_uniform_(lora_a, a=math.sqrt(5), generator=generator)
        device = base.weight.device
        self.lora_a = nn.Parameter(lora_a.to(device))
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank, device=device))


class RoutedLinear(nn.Module):
    """A frozen linear layer plus the experts that tasks placed on it.

    Args:
        base: The layer of the base model; wrapped, never changed.
        context: Holds the gates of the running forward.
        view: Whether the rows of the input are the vision tower's or the language model's.
        dropout: Probability of dropping an entry of the experts' input while training.

    Source:
        D-MoLE (https://arxiv.org/abs/2506.11672): base output plus the plain sum of the active
        experts. Differs from the released code in that gates are per sample, not per batch.
    """

    def __init__(
        self, base: nn.Linear, context: GateContext, view: View, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.base = base
        self.view = view
        self.dropout = nn.Dropout(dropout)
        self.experts = nn.ModuleDict()
        self._context = context

    @property
    def weight(self) -> Tensor:
        """Weight of the base layer; some models read its dtype."""
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        """Bias of the base layer."""
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
        """Return the expert of a task; KeyError where the task has none here."""
        return cast("LoRAExpert", self.experts[expert_key(name)])

    @property
    def names(self) -> tuple[str, ...]:
        """Tasks that hold an expert here, in the order they came."""
        return tuple(key.removeprefix(_PREFIX) for key in self.experts)

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated sum.

        Args:
            x: Input of shape ``(rows, ..., in_features)``.

        Returns:
            Tensor of shape ``(rows, ..., out_features)``.
        """
        out: Tensor = self.base(x)
        gates = self._context.current
        if gates is None:
            return out
        # a trainable expert is computed even where no sample uses it: its parameters must be in
        # the graph of every rank, or distributed training waits for gradients that never come
        training = torch.is_grad_enabled()
        names = [
            name
            for name in self.names
            if name in gates.live or (training and self.expert(name).lora_a.requires_grad)
        ]
        if not names:
            return out
        experts = [self.expert(name) for name in names]
        low = self._down(x, experts)  # (rows, ..., sum of ranks)
        mask = gates.rank_mask(self.view, names, [expert.rank for expert in experts], x)
        if mask is not None:
            low = low * mask.to(low.dtype)
        return out + _linear(low, _joined_up(experts)).to(out.dtype)

    def _down(self, x: Tensor, experts: list[LoRAExpert]) -> Tensor:
        """Project the input to the channels of all given experts, each already scaled."""
        lora_a = experts[0].lora_a if len(experts) == 1 else torch.cat([e.lora_a for e in experts])
        x = self.dropout(x)
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(lora_a.dtype)
        low = _linear(x, lora_a)
        scalings = {expert.scaling for expert in experts}
        if len(scalings) == 1:
            return low * scalings.pop()
        channels = [expert.scaling for expert in experts for _ in range(expert.rank)]
        return low * torch.tensor(channels, device=low.device, dtype=low.dtype)


_PREFIX = "task_"  # a task may be called "train" or "keys", which no submodule can


def expert_key(name: str) -> str:
    """Return the submodule name of a task's expert."""
    return _PREFIX + name


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply with the rows flattened to one axis.

    With more axes torch picks the kernel by whether the weight is trainable, and an expert's
    answers would change in their last bits when it is frozen.
    """
    return F.linear(x.reshape(-1, x.shape[-1]), weight).reshape(*x.shape[:-1], weight.shape[0])


def _joined_up(experts: list[LoRAExpert]) -> Tensor:
    if len(experts) == 1:
        return experts[0].lora_b
    return torch.cat([expert.lora_b for expert in experts], dim=1)
