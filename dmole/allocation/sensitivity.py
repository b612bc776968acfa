"""The allocator of D-MoLE: units by score, budgets of the modalities by difficulty."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch

from dmole.allocation.allocators import Allocator, Scores, Start
from dmole.allocation.budget import (
    Normalize,
    budget_modality,
    normalize_scores,
    score_shares,
    select_top_k,
    split_budget,
)
from dmole.allocation.initializers import Initializer
from dmole.allocation.meter import Combine, Reduction
from dmole.allocation.plan import Allocation, Unit, UnitKind
from dmole.allocation.proxy import check_combine

Score = Literal["gradient", "delta"]


class SensitivityAllocator(Allocator):
    """Give experts to the units with the largest proxy scores, with a budget per modality.

    Args:
        rank: Rank of a new expert at factor 1.
        unit: ``block`` (the paper) or ``linear`` (the release).
        budget_fraction: Share of the units that get an expert, in ``(0, 1]``.
        vision_floor: Minimum share of the budget for vision: 0 (the paper), 0.25 (the release).
        proxy_fraction: Share of the task's batches that the scores are computed on.
        reduction: Reduction of the gradients of several batches to a score, see
            :func:`~dmole.allocation.proxy.score_gradients`.
        normalize: ``tower`` divides scores by the mean of their modality; ``none`` does not.
        modules: Modalities that may get experts.
        curriculum: Split the budget between the modalities by difficulty; False selects the best
            units across both (ablation).
        max_parameters: Cap on the expert parameters of one task. The selected units with
            the lowest scores are dropped until the rest fit.
        seed: Seed of the draw among exact ties, the same for every task.
        targets: Regular expression of the linears that are scored and may hold experts; the
            release uses those of attention only. Empty matches all.
        rank_factor: Factor on ``rank``, see :class:`Allocator`.
        combine: ``sum`` of the norms of a unit's tensors (published) or one ``norm`` over all of
            them, which does not change where query, key and value are fused; see
            :func:`~dmole.allocation.proxy.score_gradients`.
        proxy_passes: Passes over the scored batches. Each keeps the float32 gradients of about
            ``1 / proxy_passes`` of the weights; the scores are the same, the time is a multiple.
        start: Initial values of a new expert, see :class:`Allocator`.
        start_samples: Training samples on which the past experts are compared.
        start_ratio: Largest loss of an expert to start from, relative to the entropy of the
            answers, see :func:`~dmole.allocation.start.closest_expert`.
        initializer: Sets the initial values of a new expert, see :class:`Allocator`.
        score: ``gradient``: norm of the gradients of the weights (published). ``delta``: relative
            size of the update that an expert in the unit gets in a short training of experts in all
            units together, see :func:`~dmole.allocation.delta.relative_deltas`; ``proxy_fraction``,
            ``reduction``, ``combine`` and ``proxy_passes`` have no effect then.
        score_steps: Optimizer steps of that training, each on a random batch of the task, with the
            optimizer, warm-up and schedule of the stage. The experts are deleted after it.

    Raises:
        ValueError: If an argument is out of range.

    Source:
        D-MoLE, 2025, https://arxiv.org/abs/2506.11672. The score ``delta`` is ours, docs/scores.md.

    Example:
        >>> from dmole.allocation import SensitivityAllocator, Unit
        >>> names = ("vision.0", "vision.1", "language.0", "language.1")
        >>> units = [Unit(name, name[:-2], (f"{name}.fc",), 8) for name in names]
        >>> scores = dict(zip(names, (1.0, 3.0, 5.0, 2.0)))
        >>> plan = SensitivityAllocator().allocate("count", units, scores, first=True)
        >>> [entry.unit for entry in plan.experts], plan.budget
        (['vision.1', 'language.0'], {'vision': 1, 'language': 1})
    """

    needs_scores = True

    def __init__(
        self,
        *,
        rank: int = 8,
        unit: UnitKind = "block",
        budget_fraction: float = 0.5,
        vision_floor: float = 0.0,
        proxy_fraction: float = 0.01,
        reduction: Reduction = "sum",
        normalize: Normalize = "none",
        modules: Sequence[str] = ("vision", "language"),
        curriculum: bool = True,
        max_parameters: int | None = None,
        seed: int = 42,
        targets: str = "",
        rank_factor: float = 1.0,
        combine: Combine = "sum",
        proxy_passes: int = 1,
        start: Start = "fresh",
        start_samples: int = 64,
        start_ratio: float = 1.5,
        initializer: Initializer | None = None,
        score: Score = "gradient",
        score_steps: int = 32,
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
        if not 0 < proxy_fraction <= 1:
            raise ValueError(f"proxy_fraction must be in (0, 1], got {proxy_fraction}")
        if proxy_passes < 1:
            raise ValueError(f"proxy_passes must be at least 1, got {proxy_passes}")
        if not 0 <= vision_floor <= 1:
            raise ValueError(f"vision_floor must be in [0, 1], got {vision_floor}")
        if reduction not in get_args(Reduction):
            raise ValueError(f"reduction must be one of {get_args(Reduction)}, got {reduction!r}")
        check_combine(combine, reduction)
        if normalize not in get_args(Normalize):
            raise ValueError(f"normalize must be one of {get_args(Normalize)}, got {normalize!r}")
        if max_parameters is not None and max_parameters < 1:
            raise ValueError(f"max_parameters must be at least 1, got {max_parameters}")
        if score not in get_args(Score):
            raise ValueError(f"score must be one of {get_args(Score)}, got {score!r}")
        if score == "delta" and initializer is not None and initializer.fixes_down:
            raise ValueError(
                f"score 'delta' trains both factors of an expert, and {type(initializer).__name__} "
                "fixes one of them"
            )
        if score_steps < 1:
            raise ValueError(f"score_steps must be at least 1, got {score_steps}")
        self.vision_floor = vision_floor
        self.proxy_fraction = proxy_fraction
        self.proxy_passes = proxy_passes
        self.reduction = reduction
        self.combine = combine
        self.normalize: Normalize = normalize
        self.curriculum = curriculum
        self.max_parameters = max_parameters
        self.seed = seed
        self.score: Score = score
        self.score_steps = score_steps
        self.scored_by = "training" if score == "delta" else "gradients"

    def allocate(
        self, expert: str, units: Sequence[Unit], scores: Scores | None, first: bool
    ) -> Allocation:
        """Return the allocation of a new expert; see :meth:`Allocator.allocate`."""
        if scores is None:
            raise ValueError(f"expert {expert}: {type(self).__name__} needs proxy scores")
        missing = [unit.name for unit in units if unit.name not in scores]
        if missing:
            raise ValueError(f"expert {expert}: unit {missing[0]} has no proxy score")
        scores = {name: None if s is None or math.isnan(s) else s for name, s in scores.items()}
        candidates = self._candidates(units, scores)
        total = self._size(expert, units, candidates)
        modalities = {unit.name: budget_modality(unit.modality) for unit in candidates}
        raw = {name: score for name in modalities if (score := scores[name]) is not None}
        comparable = normalize_scores(raw, modalities, self.normalize)
        sums = {
            modality: sum(
                score for name, score in comparable.items() if modalities[name] == modality
            )
            for modality in self.modules
        }
        caps = {modality: list(modalities.values()).count(modality) for modality in self.modules}
        chosen = self._select(comparable, modalities, self._split(sums, total, caps))
        chosen = self._fit_parameters(expert, chosen, comparable, candidates)
        shares = score_shares(sums, caps)
        return self._plan(expert, units, chosen, scores=scores, difficulty=shares)

    def _split(
        self, sums: Mapping[str, float], total: int, caps: Mapping[str, int]
    ) -> dict[str, int]:
        """Return the number of units per modality, or under ``""`` for both together."""
        if not self.curriculum:
            return {"": total}
        return split_budget(sums, total, caps=caps, vision_floor=self.vision_floor)

    def _select(
        self,
        scores: Mapping[str, float],
        modalities: Mapping[str, str],
        budget: Mapping[str, int],
    ) -> list[str]:
        generator = torch.Generator().manual_seed(self.seed)
        chosen: list[str] = []
        for modality, count in budget.items():
            pool = {name: s for name, s in scores.items() if modality in ("", modalities[name])}
            chosen += select_top_k(pool, count, generator)
        return chosen

    def _fit_parameters(
        self,
        expert: str,
        chosen: Sequence[str],
        scores: Mapping[str, float],
        units: Sequence[Unit],
    ) -> list[str]:
        kept = sorted(chosen, key=lambda name: -scores[name])
        if self.max_parameters is None:
            return kept
        cost = {unit.name: self.expert_rank * unit.parameters for unit in units}
        while kept and sum(cost[name] for name in kept) > self.max_parameters:
            last = kept.pop()
            if not kept:
                raise ValueError(
                    f"expert {expert}: max_parameters={self.max_parameters} is below the "
                    f"{cost[last]} parameters of one expert at {last}"
                )
        return kept
