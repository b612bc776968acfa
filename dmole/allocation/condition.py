"""An allocator without data: linears by the condition number of their weight (KappaTune)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dmole.allocation.allocators import Allocator, Scores
from dmole.allocation.budget import select_top_k
from dmole.allocation.initializers import Initializer
from dmole.allocation.plan import Allocation, Unit, UnitKind

SMALLEST = 1e-8
"""Added to the smallest singular value, so that a singular weight has a condition number."""


def reciprocal_condition(weight: Tensor) -> float:
    r"""Return the reciprocal condition number of a weight, in ``[0, 1]``.

    .. math:: \kappa^{-1} = \frac{\sigma_{min} + 10^{-8}}{\sigma_{max}}

    Args:
        weight: ``(out, in)``.

    Raises:
        ValueError: If a number of the weight is not finite.

    Example:
        >>> reciprocal_condition(torch.diag(torch.tensor([4.0, 1.0])))
        0.25
    """
    if not torch.isfinite(weight).all():
        raise ValueError("the weight holds a number that is not finite")
    values = torch.linalg.svdvals(weight.float())
    largest, smallest = float(values[0]), float(values[-1])
    return (smallest + SMALLEST) / largest if largest else 1.0


class ConditionAllocator(Allocator):
    """Give experts to the units whose weights have the smallest condition numbers.

    The choice depends on the base model alone and reads no samples. The score of a unit is the
    reciprocal condition number of its weight; of a block, the mean over its linears.

    Args:
        rank: Rank of a new expert at factor 1.
        unit: ``linear`` (published) or ``block``.
        budget_fraction: Share of the units that get an expert, in ``(0, 1]``.
        modules: Modalities that may get experts; units of both compete.
        targets: Regular expression of the linears that may hold experts; empty matches all.
        rank_factor: Factor on ``rank``, see :class:`Allocator`.
        seed: Seed of the draw among exact ties.
        initializer: Sets the initial values of a new expert, see :class:`Allocator`.

    Raises:
        ValueError: If an argument is out of range.

    Source:
        KappaTune, 2025, https://arxiv.org/abs/2506.16289, after the target selection of PEFT.

    Example:
        >>> from dmole.allocation import ConditionAllocator, Unit
        >>> units = [Unit(f"language.{i}.fc", "language", (f"{i}.fc",), 8) for i in range(4)]
        >>> scores = {unit.name: 1.0 / (index + 1) for index, unit in enumerate(units)}
        >>> allocator = ConditionAllocator(budget_fraction=0.25)
        >>> plan = allocator.allocate("count", units, scores, first=True)
        >>> [entry.unit for entry in plan.experts]
        ['language.0.fc']
    """

    needs_scores = True
    scored_by = "weights"

    def __init__(
        self,
        *,
        rank: int = 8,
        unit: UnitKind = "linear",
        budget_fraction: float = 0.2,
        modules: Sequence[str] = ("vision", "language"),
        targets: str = "",
        rank_factor: float = 1.0,
        seed: int = 42,
        initializer: Initializer | None = None,
    ) -> None:
        super().__init__(
            rank=rank,
            unit=unit,
            budget_fraction=budget_fraction,
            modules=modules,
            targets=targets,
            rank_factor=rank_factor,
            initializer=initializer,
        )
        self.seed = seed

    def allocate(
        self, expert: str, units: Sequence[Unit], scores: Scores | None, first: bool
    ) -> Allocation:
        """Return the allocation of a new expert; see :meth:`Allocator.allocate`."""
        if scores is None:
            raise ValueError(f"expert {expert}: ConditionAllocator needs condition numbers")
        candidates = self._candidates(units, scores)
        total = self._size(expert, units, candidates)
        pool = {unit.name: float(scores[unit.name] or 0.0) for unit in candidates}
        generator = torch.Generator().manual_seed(self.seed)
        chosen = select_top_k(pool, total, generator)
        return self._plan(expert, units, chosen, scores=scores)
