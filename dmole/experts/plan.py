"""What a linear computes under the gates of a batch: prepared once, used for every forward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dmole.experts.products import ByRow, Masked, Product
from dmole.transfer import to_device

if TYPE_CHECKING:
    from dmole.experts.expert import LoRAExpert
    from dmole.experts.gates import Gates
    from dmole.experts.lora import RoutedLinear
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
        self._rows_up: Tensor | None = None
        self._factors: dict[torch.dtype, Tensor] = {}
        dtypes = {expert.lora_a.dtype for expert in self._low_rank}
        self._dtype = dtypes.pop() if len(dtypes) == 1 else None
        self._trained: LayerPlan | None = None
        self._frozen: dict[torch.Size, ByRow | None] = {}
        self.branched = any(expert.shape.branches != 1 for expert in self._low_rank)

    def adds_to(self, out: Tensor, x: Tensor) -> bool:
        """Return whether plain products of one dtype add the experts to an output in place."""
        if not self.keep or self.branched:
            return False
        if not out.dtype == x.dtype == self._dtype or not out.is_contiguous():
            return False
        return not torch.is_autocast_enabled(x.device.type)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the experts' weights."""
        return self._low_rank[0].lora_a.dtype

    def trained(self) -> LayerPlan:
        """Return the plan of the experts that train."""
        if self._trained is None:
            own = {name: expert for name, expert in self.experts.items() if expert.learning}
            self._trained = LayerPlan(own, self.keep)
        return self._trained

    def frozen_by_row(self, gates: Gates, modality: Modality, x: Tensor) -> ByRow | None:
        """Return the product of each row with its frozen experts, where experts train beside them.

        None where there are none, or where it costs more than computing all for every row.
        """
        if self.keep or self.branched or len(self.trained().experts) == len(self.experts):
            return None
        shape = x.shape
        if shape not in self._frozen:
            own = self.trained().experts
            others = {name: e for name, e in self.experts.items() if name not in own}
            self._frozen[shape] = LayerPlan(others, keep=True)._by_row(gates, modality, x)
        return self._frozen[shape]

    def product(self, gates: Gates, linear: RoutedLinear, x: Tensor) -> Product:
        """Return how the experts are added for inputs of this shape, with kept weights.

        It is kept on the gates, unless the weights of the rows are much larger than the experts.
        """
        rows = self._by_row(gates, linear.modality, x)
        product: Product = rows or self._masked(gates, linear.modality, x)
        if rows is None or len(x) * rows.down.shape[-1] <= 2 * sum(self.channels):
            gates.products[linear, x.shape] = product
        return product

    def _masked(self, gates: Gates, modality: Modality, x: Tensor) -> Masked:
        mask = gates.rank_mask(modality, self.names, self.channels, x)
        if mask is None and self._scaling is not None:
            return Masked(self.down().t(), self.rows_up(), None, self._scaling)
        ones = x.new_ones(1, 1, sum(self.channels))
        factors = self.scaled(ones if mask is None else mask.to(x.dtype))
        rows = factors.reshape(len(factors), -1, factors.shape[-1])
        if rows.shape[1] == 1 and x[..., 0].numel() == len(rows):  # one token a row
            rows = rows[:, 0]
        return Masked(self.down().t(), self.rows_up(), rows, 1.0)

    def _by_row(self, gates: Gates, modality: Modality, x: Tensor) -> ByRow | None:
        """Return the product by rows; None where it does not exist or costs more."""
        if x.ndim != 3:
            return None
        scalings = [expert.scaling for expert in self._low_rank]
        rows = gates.row_channels(modality, self.names, self.channels, scalings, x)
        if rows is None or not rows.is_cheaper(x.shape[0] * x.shape[1]):
            return None
        return rows.take(self.down(), self.rows_up())

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
        parts = [expert.up for expert in self._low_rank]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def rows_up(self) -> Tensor:
        """Return all up-projections, a row for each channel: ``(channels, out)``, kept."""
        if self._rows_up is None:
            self._rows_up = torch.cat([expert.up.t() for expert in self._low_rank])
        return self._rows_up

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
