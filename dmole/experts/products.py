"""Two ways to add the experts of a batch to the output of a linear, for weights that are fixed.

Let a batch have ``N`` tokens in ``rows`` rows, let its experts have ``C`` channels in all, and each
row at most ``R`` of them.

- :class:`Masked` computes all ``C`` channels of every token and sets those of other samples to 0.
- :class:`ByRow` gives each row the weights of its own experts and computes ``R`` channels.

The first one reads ``C`` channels of weights, the second one ``rows * R``. So the second one is
better for a prompt of many tokens, and while decoding if the rows have few experts in common.
"""

from __future__ import annotations

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


@dataclass(frozen=True)
class Part:
    """One expert of a linear.

    Args:
        down: ``(channels, in)``.
        up: ``(out, channels)``.
        scaling: Factor of its update.
    """

    down: Tensor
    up: Tensor
    scaling: float


@dataclass(frozen=True)
class Sharing:
    """Which rows have the same experts with the same weights.

    Args:
        weights: Weight of each expert, for each of the ``K`` combinations that occur.
        index: ``(rows,)`` combination of each row, on the device of the gates.
    """

    weights: Sequence[Sequence[float]]
    index: Tensor

    def channels(self, parts: Sequence[Part]) -> int:
        """Return the largest number of channels that a row has: ``R``."""
        return max(
            sum(len(part.down) for part, weight in zip(parts, row, strict=True) if weight)
            for row in self.weights
        )

    def is_cheaper(self, parts: Sequence[Part], tokens: int) -> bool:
        """Return whether :class:`ByRow` costs less than :class:`Masked` for so many tokens."""
        all_channels, own = sum(len(part.down) for part in parts), self.channels(parts)
        masked = all_channels * (tokens / TOKENS_PER_READ + 1)
        return own * (tokens / TOKENS_PER_READ + len(self.index)) < masked

    def by_row(self, parts: Sequence[Part]) -> ByRow:
        """Return the product of each row with its own experts; rows with fewer get zeros."""
        channels = self.channels(parts)
        down = parts[0].down.new_zeros(len(self.weights), channels, parts[0].down.shape[1])
        up = parts[0].up.new_zeros(len(self.weights), len(parts[0].up), channels)
        for number, row in enumerate(self.weights):
            end = 0
            for part, weight in zip(parts, row, strict=True):
                if weight:
                    begin, end = end, end + len(part.down)
                    down[number, begin:end] = part.down
                    torch.mul(part.up, weight * part.scaling, out=up[number, :, begin:end])
        index = self.index.to(down.device, non_blocking=True)
        return ByRow(down[index].transpose(1, 2), up[index].transpose(1, 2))
