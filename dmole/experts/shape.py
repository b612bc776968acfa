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
        rank  0, branches 0, usage 4   a record of how much a task used four parallel experts

    Args:
        rank: Rows of ``lora_a``; 0 for a router alone.
        alpha: Numerator of the scaling ``alpha / rank``.
        branches: Number of up-projections that share ``lora_a``.
        heads: Rows of the router, a linear map without bias; 0 for none.
        text_width: Inputs of a second router of as many rows, which reads the embedding of a
            sample's instruction; 0 for none.
        fused: Banks of parallel experts that are weighed by their outputs; 0 for none.
        usage: Parallel experts of another expert whose use by a task is recorded; 0 for none.
        fixed_routers: 1 if the routers keep their initial values.
    """

    rank: int
    alpha: float
    branches: int = 1
    heads: int = 0
    text_width: int = 0
    fused: int = 0
    usage: int = 0
    fixed_routers: int = 0

    @property
    def plain(self) -> bool:
        """Whether it is plain LoRA, which PEFT can hold."""
        return len(self.to_list()) == 2

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
        low_rank = self.rank * in_features + self.channels * out_features
        routers = self.heads * (in_features + self.text_width)
        return low_rank + routers + self.fused * out_features

    def to_list(self) -> list[float]:
        """Return plain numbers: rank and alpha, then the others unless they are defaults."""
        mixed = [self.branches, self.heads]
        rest = [self.text_width, self.fused, self.usage, self.fixed_routers]
        if any(rest):
            return [self.rank, self.alpha, *mixed, *rest]
        return [self.rank, self.alpha] + ([] if mixed == [1, 0] else mixed)

    @classmethod
    def from_list(cls, numbers: Sequence[float]) -> ExpertShape:
        """Return the shape from the numbers of :meth:`to_list`."""
        if len(numbers) not in (2, 4, 8):
            raise ValueError(f"the shape of an expert has 2, 4 or 8 numbers, got {len(numbers)}")
        rank, alpha, *rest = numbers
        return cls(int(rank), float(alpha), *map(int, rest))
