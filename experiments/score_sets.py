"""The sets of blocks that scores and splits of the budget select."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch

from dmole.allocation import SensitivityAllocator, Unit
from dmole.allocation.budget import budget_modality, select_top_k, total_budget
from experiments.block_scores import PUBLISHED, Scores

ORACLE = "oracle"
"""Name of the score that knows the gain of an expert in each block alone."""
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of the budget for vision that are tried in the table of splits."""
SPLITS = ("published", "per_parameter", "equal")
"""Rules for the split of the budget; the blocks of a modality are those of the published score."""
Blocks = tuple[str, ...]
"""Blocks in the order of the model."""


def picked(units: Sequence[Unit], scores: Scores, budget: float, *, split: bool) -> Blocks:
    """Return the blocks that `SensitivityAllocator` picks.

    Args:
        units: All blocks.
        scores: Score of each block.
        budget: Share of the blocks.
        split: Whether the modalities share the budget by their summed scores; else the best blocks
            of both are picked.
    """
    allocator = SensitivityAllocator(budget_fraction=budget, curriculum=split)
    plan = allocator.allocate("expert", units, scores, first=True)
    return tuple(entry.unit for entry in plan.experts)


def with_share(units: Sequence[Unit], scores: Scores, budget: float, share: float) -> Blocks:
    """Return the best blocks of each modality, with a share of the budget for vision.

    Args:
        units: All blocks.
        scores: Score of each block.
        budget: Share of the blocks.
        share: Share of vision, in ``[0, 1]``; what exceeds its blocks, or those of the language
            model, goes to the other modality.
    """
    total = total_budget(len(units), budget)
    pools: dict[str, dict[str, float]] = {"vision": {}, "language": {}}
    for unit in units:
        pools[budget_modality(unit.modality)][unit.name] = scores[unit.name]
    vision = min(math.floor(share * total + 0.5), len(pools["vision"]))
    vision = max(vision, total - len(pools["language"]))
    draw = torch.Generator().manual_seed(0)  # among exact ties
    chosen = select_top_k(pools["vision"], vision, draw)
    chosen += select_top_k(pools["language"], total - vision, draw)
    return tuple(unit.name for unit in units if unit.name in chosen)


def sets_of_scores(
    units: Sequence[Unit], scores: Mapping[str, Scores], budget: float
) -> Iterator[tuple[str, str, Blocks]]:
    """Yield score, ``split`` or ``across``, and the blocks that they pick.

    Args:
        units: All blocks.
        scores: Scores by name; random ones and the oracle have no split, as their sums over a
            modality mean nothing.
        budget: Share of the blocks.
    """
    for name, values in scores.items():
        if not name.startswith(("random", ORACLE)):
            yield name, "split", picked(units, values, budget, split=True)
        yield name, "across", picked(units, values, budget, split=False)


def sets_of_splits(
    units: Sequence[Unit], scores: Mapping[str, Scores], budget: float
) -> Iterator[tuple[str, Blocks]]:
    """Yield the rule of a split, or a share of vision in percent, and the blocks."""
    ranking = scores[PUBLISHED]
    for rule in SPLITS:
        yield rule, with_share(units, ranking, budget, vision_share(units, scores, rule))
    for share in SHARES:
        yield f"vision {share:.0%}", with_share(units, ranking, budget, share)


def vision_share(units: Sequence[Unit], scores: Mapping[str, Scores], rule: str) -> float:
    """Return the share of the budget for vision under a rule of `SPLITS`."""
    if rule == "equal":
        return 0.5
    values = scores[PUBLISHED if rule == "published" else rule]
    vision = sum(values[u.name] for u in units if budget_modality(u.modality) == "vision")
    total = sum(values.values())
    return vision / total if total else 0.5
