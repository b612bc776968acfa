"""The tensors of one expert in one linear."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dmole.experts.shape import ExpertShape

_PREFIX = "expert_"  # an expert may be called "train" or "keys", a submodule may not


def expert_key(name: str) -> str:
    """Return the submodule name of an expert."""
    return _PREFIX + name


def expert_name(key: str) -> str:
    """Return the name of an expert from that of its submodule."""
    return key.removeprefix(_PREFIX)


class ExpertPart(nn.Module):
    """The tensors of one expert at one place of the model, without submodules."""

    def trainable(self) -> Iterator[nn.Parameter]:
        """Yield the parameters that may train."""
        yield from self.parameters()

    def own_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the parameters, then the buffers, by name."""
        # as `named_parameters` and `named_buffers`, which also look for modules within
        for tensors in (self._parameters, self._buffers):
            yield from ((key, tensor) for key, tensor in tensors.items() if tensor is not None)

    @property
    def learning(self) -> bool:
        """Whether one of its parameters requires gradients."""
        # a walk over `parameters()` takes ten times as long, and every linear asks all its experts
        return any(p is not None and p.requires_grad for p in self._parameters.values())


class LoRAExpert(ExpertPart):
    """One expert in one linear: ``lora_b @ lora_a`` scaled by ``alpha / rank``, or a router.

    Args:
        base: The linear of the base model.
        shape: Shape of the expert's tensors.
        generator: Source of the initial ``lora_a`` and router (Kaiming uniform with
            ``a = sqrt(5)``); the up-projections start at zero, so a new expert does not
            change the output.

    Source:
        Hu et al. 2022, https://arxiv.org/abs/2106.09685, section 4.1.
    """

    def __init__(self, base: nn.Linear, shape: ExpertShape, generator: torch.Generator) -> None:
        super().__init__()
        if shape.rank < (1 if shape.branches else 0):
            raise ValueError(f"the rank of an expert must be at least 1, got {shape.rank}")
        self.shape = shape
        self.rank = shape.rank
        self.alpha = shape.alpha
        self.scaling = shape.alpha / shape.rank if shape.rank else 0.0
        device = base.weight.device
        if shape.rank:
            self.lora_a = _drawn(shape.rank, base.in_features, generator, device)  # (rank, in)
        for name in self._up_names():
            zeros = torch.zeros(base.out_features, shape.rank, device=device)  # (out, rank)
            self.register_parameter(name, nn.Parameter(zeros))
        if shape.heads:
            self.router = _drawn(shape.heads, base.in_features, generator, device)  # (heads, in)
        if shape.heads and shape.text_width:
            self.text_router = _drawn(shape.heads, shape.text_width, generator, device)
        if shape.fused:
            self.fusion = _drawn(shape.fused, base.out_features, generator, device)  # (banks, out)
        if shape.usage:
            self.usage = nn.Buffer(torch.zeros(shape.usage, device=device))  # shares of use
        if shape.branches > 1:
            self.frozen = nn.Buffer(torch.zeros(shape.branches, device=device))
            self.trunk_frozen = nn.Buffer(torch.zeros(1, device=device))

    def _up_names(self) -> list[str]:
        """Return the names of the up-projections; every branch is a separate parameter."""
        several = [f"lora_b_{index}" for index in range(self.shape.branches)]
        return ["lora_b"] if self.shape.branches == 1 else several

    @property
    def up(self) -> Tensor:
        """All up-projections concatenated, ``(out_features, channels)``."""
        parts = [getattr(self, name) for name in self._up_names()]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)  # (out, rank * branches)

    def trainable(self) -> Iterator[nn.Parameter]:
        """Yield the parameters that may train: all but frozen trunk, branches and routers."""
        fixed = {"router", "text_router"} if self.shape.fixed_routers else set()
        if self.shape.branches > 1:
            flags = [*self.trunk_frozen.tolist(), *self.frozen.tolist()]
            names = ["lora_a", *self._up_names()]
            fixed |= {name for name, off in zip(names, flags, strict=True) if off}
        yield from (p for name, p in self.named_parameters() if name not in fixed)


def _drawn(
    rows: int, columns: int, generator: torch.Generator, device: torch.device
) -> nn.Parameter:
    weight = torch.empty(rows, columns)  # drawn on the CPU: the same on every device
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)
    return nn.Parameter(weight.to(device))
