"""Two ways to add the experts of a batch to the output of a linear, for weights that are fixed.

Let a batch have ``N`` tokens in ``rows`` rows, let its experts have ``C`` channels in all, and each
row at most ``R`` of them.

- :class:`Masked` computes all ``C`` channels of every token and sets those of other samples to 0.
- :class:`ByRow` gives each row the weights of its own experts and computes ``R`` channels.

The first one reads ``C`` channels of weights, the second one ``rows * R``. So the second one is
better for a prompt of many tokens, and while decoding if the rows have few experts in common.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

TOKENS_PER_READ = 16
"""Tokens that are computed with a weight in the time that reading it takes, on a CPU."""


class Product(Protocol):
    """Adds experts to an output in place."""

    def fits(self, out: Tensor, x: Tensor) -> bool:
        """Return whether output and input have the type of the weights and can be added to."""

    def add_to(self, out: Tensor, x: Tensor) -> Tensor:
        """Add the experts to ``out`` ``(rows, ..., out)`` for ``x`` ``(rows, ..., in)``."""


class _InPlace:
    """What both products share.

    Args:
        down: Down-projections; the last axis has the channels.
        up: Up-projections; the last but one axis has the channels.
    """

    def __init__(self, down: Tensor, up: Tensor) -> None:
        self.down = down
        self.up = up
        self._dtype = up.dtype

    def fits(self, out: Tensor, x: Tensor) -> bool:
        """Return whether output and input have the type of the weights and can be added to."""
        return out.dtype is x.dtype is self._dtype and out.is_contiguous()


class Masked(_InPlace):
    """All experts of the batch for every row.

    Args:
        down: ``(in, C)``.
        up: ``(C, out)``.
        factors: ``(rows, 1 or S, C)``, or ``(N, C)``; None if all are one.
        scaling: Factor of the whole update.
    """

    def __init__(self, down: Tensor, up: Tensor, factors: Tensor | None, scaling: float) -> None:
        super().__init__(down, up)
        self._factors = factors
        self._scaling = scaling

    def add_to(self, out: Tensor, x: Tensor) -> Tensor:
        """Add the experts to ``out`` ``(rows, ..., out)`` for ``x`` ``(rows, ..., in)``."""
        low = torch.mm(x.reshape(-1, x.shape[-1]), self.down)  # (N, C)
        factors = self._factors
        if factors is not None:
            shaped = low if factors.ndim == 2 else low.view(x.shape[0], -1, low.shape[-1])
            shaped.mul_(factors)
        out.view(-1, out.shape[-1]).addmm_(low, self.up, alpha=self._scaling)
        return out


class ByRow(_InPlace):
    """The experts of each row alone.

    Args:
        down: ``(rows, in, R)``.
        up: ``(rows, R, out)``, gates and scaling included.
    """

    def add_to(self, out: Tensor, x: Tensor) -> Tensor:
        """Add the experts to ``out`` ``(rows, S, out)`` for ``x`` ``(rows, S, in)``."""
        return out.baddbmm_(torch.bmm(x, self.down), self.up)

    def sum_with(self, out: Tensor, x: Tensor) -> Tensor:
        """Return the sum of ``out`` and the experts, in the type of ``out``, with its graph."""
        low = torch.bmm(x, self.down)
        if self.fits(out, x) and not torch.is_autocast_enabled(x.device.type):
            return torch.baddbmm(out, low, self.up)
        return out + torch.bmm(low, self.up).to(out.dtype)


@dataclass(frozen=True)
class RowChannels:
    """The channels of a linear that each row uses, out of those of all its experts.

    Args:
        index: ``(rows, R)`` channels; a row with fewer than ``R`` has others with a factor of 0.
        factors: ``(rows, R, 1)`` gate times scaling of each of them.
        channels: Number of channels of all experts, ``C``.
    """

    index: Tensor
    factors: Tensor
    channels: int

    @classmethod
    def of(
        cls, weights: Sequence[Sequence[float]], ranks: Sequence[int], scalings: Sequence[float]
    ) -> RowChannels:
        """Return the channels of rows on the CPU.

        Args:
            weights: Weight of each expert, for each row.
            ranks: Number of channels of each expert.
            scalings: Factor of each expert's update.
        """
        starts = list(itertools.accumulate(ranks, initial=0))
        kinds: dict[tuple[float, ...], int] = {}  # many rows have the same experts
        kind_of_row = [kinds.setdefault(tuple(row), len(kinds)) for row in weights]
        rows = [
            [
                (channel, weight * scaling)
                for start, rank, weight, scaling in zip(starts, ranks, kind, scalings, strict=False)
                if weight
                for channel in range(start, start + rank)
            ]
            for kind in kinds
        ]
        width = max(1, *map(len, rows))
        padded = [[*row, *[(0, 0.0)] * (width - len(row))] for row in rows]
        index = torch.tensor([[channel for channel, _ in row] for row in padded])
        factors = torch.tensor([[factor for _, factor in row] for row in padded])
        return cls(index[kind_of_row], factors[kind_of_row, :, None], sum(ranks))

    def is_cheaper(self, tokens: int) -> bool:
        """Return whether :class:`ByRow` costs less than :class:`Masked` for so many tokens."""
        rows, own = self.index.shape
        masked = self.channels * (tokens / TOKENS_PER_READ + 1)
        return own * (tokens / TOKENS_PER_READ + rows) < masked

    def take(self, down: Tensor, up: Tensor) -> ByRow:
        """Return the product of each row with its own channels.

        Args:
            down: ``(C, in)``.
            up: ``(C, out)``.
        """
        rows, own = self.index.shape
        index = self.index.flatten()
        chosen = down.index_select(0, index).view(rows, own, -1)
        scaled = up.index_select(0, index).view(rows, own, -1).mul_(self.factors.to(up.dtype))
        return ByRow(chosen.transpose(1, 2), scaled)
