"""What a linear computes under the gates of a batch: prepared once, used for every forward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dmole.transfer import to_device

if TYPE_CHECKING:
    from dmole.experts.gates import Gates
    from dmole.experts.lora import LoRAExpert
    from dmole.modality import Modality


@dataclass
class LayerPlan:
    """The experts that a linear computes, and their weights joined.

    Decoding runs the same linear once for each token. Nothing here depends on the token, so the
    plan is kept on the gates for as long as these are in use.

    Args:
        experts: Experts by name, oldest first, those without a low-rank update included.
        keep: Whether the joined weights are kept; they are if they cannot change meanwhile.
    """

    experts: Mapping[str, LoRAExpert]
    keep: bool
    names: list[str] = field(init=False)
    channels: list[int] = field(init=False)

    def __post_init__(self) -> None:
        low_rank = {name: expert for name, expert in self.experts.items() if expert.rank}
        self.names = list(low_rank)
        self.channels = [expert.shape.channels for expert in low_rank.values()]
        self._low_rank = list(low_rank.values())
        scalings = {expert.scaling for expert in self._low_rank}
        self._scaling = scalings.pop() if len(scalings) == 1 else None
        self._down: Tensor | None = None
        self._up: Tensor | None = None
        self._factors: dict[torch.dtype, Tensor] = {}
        self._products: dict[int, tuple[Tensor | None, float]] = {}
        dtypes = {expert.lora_a.dtype for expert in self._low_rank}
        self._dtype = dtypes.pop() if len(dtypes) == 1 else None
        self.branched = any(expert.shape.branches != 1 for expert in self._low_rank)

    def adds_to(self, out: Tensor, x: Tensor) -> bool:
        """Return whether plain products of one dtype add the experts to an output in place."""
        if self.branched or not out.dtype == x.dtype == self._dtype or not out.is_contiguous():
            return False
        return not torch.is_autocast_enabled(x.device.type)

    def factors(self, gates: Gates, modality: Modality, x: Tensor) -> tuple[Tensor | None, float]:
        """Return gate times scaling of each channel, ``(rows, 1 or S, channels)``, and one of all.

        The first is None where all gates are one and the experts share one scaling.
        """
        rows = x.shape[0]
        if rows not in self._products:
            mask = gates.rank_mask(modality, self.names, self.channels, x)
            if mask is None and self._scaling is not None:
                self._products[rows] = None, self._scaling
            else:
                ones = x.new_ones(1, 1, sum(self.channels))
                factors = self.scaled(ones if mask is None else mask.to(x.dtype))
                self._products[rows] = factors.reshape(len(factors), -1, factors.shape[-1]), 1.0
        return self._products[rows]

    def down(self) -> Tensor:
        """Return all down-projections, ``(sum of ranks, in)``."""
        if self._down is not None:
            return self._down
        parts: list[Tensor] = [expert.lora_a for expert in self._low_rank]
        joined = parts[0] if len(parts) == 1 else torch.cat(parts)
        self._down = joined if self.keep else None
        return joined

    def up(self) -> Tensor:
        """Return all up-projections, ``(out, channels)``."""
        if self._up is not None:
            return self._up
        parts = [expert.up for expert in self._low_rank]
        joined = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        self._up = joined if self.keep else None
        return joined

    def scaled(self, low: Tensor) -> Tensor:
        """Return ``(..., sum of ranks)`` times the scaling of each expert."""
        if self._scaling is not None:
            return low * self._scaling
        if low.dtype not in self._factors:
            factors = [expert.scaling for expert in self._low_rank for _ in range(expert.rank)]
            host = torch.tensor(factors, dtype=low.dtype)
            self._factors[low.dtype] = to_device(host, low.device)
        return low * self._factors[low.dtype]

    def tiled(self, low: Tensor) -> Tensor:
        """Return ``(..., channels)`` from ``(..., sum of ranks)``: once for each branch."""
        if not self.branched:
            return low
        parts = torch.split(low, [expert.rank for expert in self._low_rank], dim=-1)
        repeated = [
            torch.cat([part] * expert.shape.branches, dim=-1)
            for part, expert in zip(parts, self._low_rank, strict=True)
        ]
        return torch.cat(repeated, dim=-1)
