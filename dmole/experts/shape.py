"""Shape of one expert in one linear."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ExpertShape:
    """Shape of an expert's tensors in one linear.

    ::

        rank  2, branches 1, heads 0   plain LoRA
        rank  8, branches 1, heads 4   four parallel experts of rank 2, mixed by a router
        rank  2, branches 4, heads 0   four up-projections on top of one shared down-projection
        rank  0, branches 0, heads 4   a router over another expert's channels

    Args:
        rank: Rows of ``lora_a``; 0 for a router alone.
        alpha: Numerator of the scaling ``alpha / rank``.
        branches: Number of up-projections that share ``lora_a``.
        heads: Rows of the router, a linear map without bias; 0 for none.
    """

    rank: int
    alpha: float
    branches: int = 1
    heads: int = 0

    @property
    def channels(self) -> int:
        """Low-rank channels that the up-projection reads."""
        return self.rank * self.branches

    def count(self, in_features: int, out_features: int) -> int:
        """Return the number of parameters on a linear of a given size.

        Example:
            >>> ExpertShape(rank=8, alpha=16.0, heads=4).count(100, 50)
            1600
        """
        return self.rank * in_features + self.channels * out_features + self.heads * in_features

    def to_list(self) -> list[float]:
        """Return plain numbers: rank and alpha, then branches and heads unless plain LoRA."""
        plain = (self.branches, self.heads) == (1, 0)
        return [self.rank, self.alpha] + ([] if plain else [self.branches, self.heads])

    @classmethod
    def from_list(cls, numbers: Sequence[float]) -> ExpertShape:
        """Return the shape from the numbers of :meth:`to_list`."""
        rank, alpha, branches, heads = [*numbers, 1, 0][:4] if len(numbers) == 2 else numbers
        return cls(int(rank), float(alpha), int(branches), int(heads))
