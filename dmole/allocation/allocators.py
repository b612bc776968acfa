"""The base class of the allocators, and those that do not depend on the task."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, get_args

from dmole.allocation.budget import (
    budget_modality,
    experts_by_depth,
    round_half_up,
    split_budget,
    spread_evenly,
    total_budget,
)
from dmole.allocation.initializers import Initializer
from dmole.allocation.meter import Combine, Reduction
from dmole.allocation.plan import Allocation, AllocationEntry, Unit, UnitKind

Scores = Mapping[str, float | None]
Start = Literal["fresh", "closest"]


class Allocator(ABC):
    """Selects the units of the model that get an expert for a new task.

    Args:
        rank: Rank of a new expert at factor 1, the size that a benchmark sets.
        unit: ``block``: a transformer block with all its linears; ``linear``: a single linear.
        budget_fraction: Share of the units that get an expert, in ``(0, 1]``.
        modules: Modalities that may get experts. The linears of the projector, if the model has
            any, belong to ``language``.
        targets: Regular expression, searched in the paths of linears; only matching linears may
            hold experts. Example: ``attn|attention``. Empty matches all.
        rank_factor: Factor on ``rank``, the size of a method relative to the benchmark. The
            product is rounded to the nearest integer, at least 1. The scaling of an expert does
            not depend on the factor.
        start: Initial values of a new expert. ``fresh``: those of LoRA, which change no output.
            ``closest``: those of the past expert under which the answers of the new task are
            likeliest, on the units of that expert; fresh ones if no expert predicts them better
            than the base model and about as well as their frequencies.
        start_samples: Training samples on which the past experts are compared.
        start_ratio: Largest loss of an expert to start from, relative to the entropy of the
            answers, see :func:`~dmole.allocation.start.closest_expert`.
        initializer: Sets the initial values of a new expert in place of ``start``, see
            :class:`Initializer`; None for those of LoRA: Kaiming uniform ``A`` and ``B`` of 0.

    Raises:
        ValueError: If an argument is out of range, or ``start`` and ``initializer`` are both set.
    """

    needs_scores: bool = False
    """Whether :meth:`allocate` requires scores."""
    scored_by: Literal["gradients", "training", "weights"] = "gradients"
    """Whether scores are of gradients, of a short training, or condition numbers of weights."""
    score_steps: int = 0
    """Optimizer steps of that training."""
    proxy_fraction: float = 0.01
    """Share of a task's batches that the scores are computed on."""
    reduction: Reduction = "sum"
    """Reduction of the gradients of several batches to a score."""
    combine: Combine = "sum"
    """How the tensors of a unit are combined to its score."""
    proxy_passes: int = 1
    """Passes over the batches, each of which keeps the gradients of a group of units."""

    lr_factor: float = 1.0
    """Factor on the learning rate of the experts."""

    def __init__(
        self,
        *,
        rank: int = 8,
        unit: UnitKind = "block",
        budget_fraction: float = 0.5,
        modules: Sequence[str] = ("vision", "language"),
        targets: str = "",
        rank_factor: float = 1.0,
        start: Start = "fresh",
        start_samples: int = 64,
        start_ratio: float = 1.5,
        initializer: Initializer | None = None,
    ) -> None:
        if rank < 1:
            raise ValueError(f"rank must be at least 1, got {rank}")
        if not 0 < rank_factor < math.inf:
            raise ValueError(f"rank_factor must be a positive number, got {rank_factor}")
        if unit not in ("block", "linear"):
            raise ValueError(f"unit must be 'block' or 'linear', got {unit!r}")
        if not 0 < budget_fraction <= 1:
            raise ValueError(f"budget_fraction must be in (0, 1], got {budget_fraction}")
        unknown = set(modules) - {"vision", "language"}
        if unknown or not modules:
            raise ValueError(f"modules must be of 'vision' and 'language', got {list(modules)}")
        if start not in get_args(Start):
            raise ValueError(f"start must be one of {get_args(Start)}, got {start!r}")
        if start_samples < 1:
            raise ValueError(f"start_samples must be at least 1, got {start_samples}")
        if not start_ratio >= 0:
            raise ValueError(f"start_ratio must be at least 0, got {start_ratio}")
        if initializer is not None and start != "fresh":
            raise ValueError(
                f"start {start!r} copies a past expert and initializer "
                f"{type(initializer).__name__} sets other values: set only one of the two"
            )
        self.initializer = initializer
        self.start: Start = start
        self.start_samples = start_samples
        self.start_ratio = start_ratio
        self.rank = rank
        self.unit: UnitKind = unit
        self.budget_fraction = budget_fraction
        self.modules = tuple(modules)
        self.targets = check_pattern(targets)
        self.rank_factor = rank_factor

    @property
    def expert_rank(self) -> int:
        """Rank of a new expert: ``rank`` times ``rank_factor``, rounded, at least 1."""
        return max(1, round_half_up(self.rank * self.rank_factor))

    def expert_alpha(self, alpha: float) -> float:
        """Return the numerator for an expert's rank that gives the scaling ``alpha / rank``.

        Example:
            >>> from dmole.allocation import UniformAllocator
            >>> half = UniformAllocator(rank=8, rank_factor=0.5)
            >>> half.expert_rank, half.expert_alpha(16.0)
            (4, 8.0)
        """
        # without a factor the quotient would not be alpha to the bit
        same = self.expert_rank == self.rank
        return alpha if same else alpha * self.expert_rank / self.rank

    @abstractmethod
    def allocate(
        self, expert: str, units: Sequence[Unit], scores: Scores | None, first: bool
    ) -> Allocation:
        """Return the allocation of a new expert.

        Args:
            expert: Name of the expert.
            units: All units of the model, in order.
            scores: Proxy score by unit name; None (or NaN) marks a unit without gradient, which
                is never selected.
            first: Whether this is the first task of the sequence.

        Raises:
            ValueError: If no unit can hold an expert or scores are missing.
        """

    def largest(self, expert: str, units: Sequence[Unit], *, first: bool) -> Allocation:
        """Return an allocation with every unit that a new expert may get, before any scores.

        Args:
            expert: Name of the expert.
            units: All units of the model, in order.
            first: Whether this is the first task of the sequence.

        Raises:
            ValueError: If no unit can hold an expert.
        """
        if not self.needs_scores:
            return self.allocate(expert, units, None, first)
        self.allocate(expert, units, dict.fromkeys((unit.name for unit in units), 1.0), first)
        return self._plan(expert, units, {unit.name for unit in self._candidates(units, None)})

    def _candidates(self, units: Sequence[Unit], scores: Scores | None) -> list[Unit]:
        """Return the units of the chosen modalities that received a gradient."""
        inside = [unit for unit in units if budget_modality(unit.modality) in self.modules]
        if scores is None:
            return inside
        return [unit for unit in inside if scores[unit.name] is not None]

    def _size(self, expert: str, units: Sequence[Unit], candidates: Sequence[Unit]) -> int:
        """Return the fraction of all units, as published, capped by the number of candidates."""
        if not candidates:
            raise ValueError(
                f"expert {expert}: no unit of {list(self.modules)} received a gradient"
            )
        inside = sum(budget_modality(unit.modality) in self.modules for unit in units)
        return min(total_budget(inside, self.budget_fraction), len(candidates))

    def _plan(
        self,
        expert: str,
        units: Sequence[Unit],
        chosen: Collection[str],
        *,
        scores: Scores | None = None,
        difficulty: Mapping[str, float] | None = None,
        mixture: Mapping[str, int] | None = None,
    ) -> Allocation:
        entries = tuple(
            AllocationEntry(
                modality=unit.modality,
                unit=unit.name,
                score=None if scores is None else scores[unit.name],
                expert=unit.name in chosen,
                rank=self.expert_rank if unit.name in chosen else 0,
                linears=unit.linears,
                parameters=unit.parameters,
                mixture=(mixture or {}).get(unit.name, 1),
            )
            for unit in units
        )
        budget = dict.fromkeys(self.modules, 0)
        for entry in entries:
            if entry.expert:
                budget[budget_modality(entry.modality)] += 1
        return Allocation(expert, entries, dict(difficulty or {}), budget)


class UniformAllocator(Allocator):
    """Give experts to every unit, or to evenly spaced units, independently of the task.

    Args:
        rank: Rank of a new expert at factor 1.
        unit: ``block`` or ``linear``.
        budget_fraction: Share of the units that get an expert, in ``(0, 1]``; the modalities
            share the budget by their number of units.
        modules: Modalities that may get experts.
        first_task_only: Allocate for the first task only, for methods that keep training one
            adapter.
        targets: Regular expression of the linears that may hold experts; empty matches all.
        experts: Parallel experts of this rank in each unit, for routers that mix them.
        rank_factor: Factor on ``rank``, see :class:`Allocator`.
        start: Initial values of a new expert, see :class:`Allocator`.
        start_samples: Training samples on which the past experts are compared.
        start_ratio: Largest loss of an expert to start from, relative to the entropy of the
            answers, see :func:`~dmole.allocation.start.closest_expert`.
        initializer: Sets the initial values of a new expert, see :class:`Allocator`.

    Raises:
        ValueError: If an argument is out of range.

    Source:
        D-MoLE, 2025, https://arxiv.org/abs/2506.11672 (ablation without its allocator).

    Example:
        >>> from dmole.allocation import UniformAllocator, Unit
        >>> units = [Unit(f"language.{i}", "language", (f"{i}.fc",), 8) for i in range(4)]
        >>> plan = UniformAllocator(budget_fraction=0.5).allocate("count", units, None, first=True)
        >>> [entry.unit for entry in plan.experts]
        ['language.1', 'language.3']
    """

    def __init__(
        self,
        *,
        rank: int = 8,
        unit: UnitKind = "block",
        budget_fraction: float = 1.0,
        modules: Sequence[str] = ("vision", "language"),
        first_task_only: bool = False,
        targets: str = "",
        experts: int = 1,
        rank_factor: float = 1.0,
        start: Start = "fresh",
        start_samples: int = 64,
        start_ratio: float = 1.5,
        initializer: Initializer | None = None,
    ) -> None:
        super().__init__(
            rank=rank,
            unit=unit,
            budget_fraction=budget_fraction,
            modules=modules,
            targets=targets,
            rank_factor=rank_factor,
            start=start,
            start_samples=start_samples,
            start_ratio=start_ratio,
            initializer=initializer,
        )
        if experts < 1:
            raise ValueError(f"experts must be at least 1, got {experts}")
        self.first_task_only = first_task_only
        self.experts = experts

    def allocate(
        self, expert: str, units: Sequence[Unit], scores: Scores | None, first: bool
    ) -> Allocation:
        """Return the allocation of a new expert; scores only exclude units without a score."""
        if self.first_task_only and not first:
            return self._plan(expert, units, (), scores=scores)
        candidates = self._candidates(units, scores)
        total = self._size(expert, units, candidates)
        pools: dict[str, list[str]] = {modality: [] for modality in self.modules}
        for unit in candidates:
            pools[budget_modality(unit.modality)].append(unit.name)
        caps = {modality: len(pool) for modality, pool in pools.items()}
        weights = {modality: float(cap) for modality, cap in caps.items()}
        budget = split_budget(weights, total, caps=caps)
        chosen = {
            name for modality, k in budget.items() for name in spread_evenly(pools[modality], k)
        }
        return self._plan(expert, units, chosen, scores=scores, mixture=self._mixture(units))

    def _mixture(self, units: Sequence[Unit]) -> dict[str, int]:
        """Return the number of experts of each unit."""
        return dict.fromkeys((unit.name for unit in units), self.experts)


class DepthAllocator(UniformAllocator):
    """Give every block a number of experts that depends on its depth within its modality.

    Args:
        counts: Experts per block by relative depth, from the first blocks to the last;
            ``[2, 4, 6, 8]`` gives each block of the first quarter 2 experts.
        rank: Rank of each expert at factor 1.
        modules: Modalities that may get experts.
        targets: Regular expression of the linears that may hold experts; empty matches all.
        rank_factor: Factor on ``rank``, see :class:`Allocator`.

    Raises:
        ValueError: If a count is below one.

    Source:
        MoLA, 2024, https://arxiv.org/abs/2402.08562, its "inverted triangle". The rule for
        other depths than 32 blocks is ours.
    """

    def __init__(
        self,
        counts: Sequence[int] = (2, 4, 6, 8),
        *,
        rank: int = 8,
        modules: Sequence[str] = ("vision", "language"),
        targets: str = "",
        rank_factor: float = 1.0,
    ) -> None:
        super().__init__(rank=rank, modules=modules, targets=targets, rank_factor=rank_factor)
        experts_by_depth(counts, len(counts))  # raises for invalid counts
        self.counts = tuple(counts)

    def _mixture(self, units: Sequence[Unit]) -> dict[str, int]:
        mixture: dict[str, int] = {}
        for modality in dict.fromkeys(unit.modality for unit in units):
            names = [unit.name for unit in units if unit.modality == modality]
            mixture |= zip(names, experts_by_depth(self.counts, len(names)), strict=True)
        return mixture


def check_pattern(pattern: str) -> str:
    """Return the pattern; raise `ValueError` if it is not a regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"targets {pattern!r} is not a regular expression: {error}") from error
    return pattern
