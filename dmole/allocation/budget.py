"""Budget of each modality and selection of units. Pure functions, no model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch

Normalize = Literal["none", "tower"]


def budget_modality(modality: str) -> str:
    """Return the modality whose budget a modality uses; the projector counts as language.

    Raises:
        ValueError: If the modality is unknown.
    """
    budgets = {"vision": "vision", "projector": "language", "language": "language"}
    if modality not in budgets:
        raise ValueError(f"modality must be one of {sorted(budgets)}, got {modality!r}")
    return budgets[modality]


def round_half_up(value: float) -> int:
    """Return the nearest integer, halves upward (Python's ``round`` rounds halves to even).

    Example:
        >>> round_half_up(2.5), round(2.5)
        (3, 2)
    """
    return math.floor(value + 0.5)


def total_budget(num_units: int, fraction: float) -> int:
    r"""Return the number of experts of a task, :math:`\lfloor fU + 1/2 \rfloor`, at least one.

    Args:
        num_units: Units :math:`U` that may hold an expert, positive.
        fraction: Share :math:`f` of them in ``(0, 1]``.

    Raises:
        ValueError: If there is no unit or the fraction is outside its range.

    Source:
        D-MoLE, 2025, https://arxiv.org/abs/2506.11672: 24 of 48 blocks.
    """
    if num_units < 1:
        raise ValueError("there is no unit that could hold an expert")
    if not 0 < fraction <= 1:
        raise ValueError(f"budget_fraction must be in (0, 1], got {fraction}")
    return max(1, round_half_up(fraction * num_units))


def score_shares(scores: Mapping[str, float], counts: Mapping[str, int]) -> dict[str, float]:
    r"""Return each modality's share :math:`r_M` of the summed proxy score, its difficulty.

    Args:
        scores: Summed proxy score per modality, non-negative.
        counts: Eligible units per modality. If all scores are zero, the shares are those of the
            counts.

    Returns:
        Shares that sum to 1.

    Raises:
        ValueError: If a score is negative or not finite, or there are neither scores
            nor units.

    Source:
        D-MoLE, 2025, https://arxiv.org/abs/2506.11672 (modality split of the budget).
    """
    for modality, score in scores.items():
        if not math.isfinite(score) or score < 0:
            raise ValueError(f"score of {modality} must be finite and >= 0, got {score}")
    weights: Mapping[str, float] = scores if any(scores.values()) else counts
    top = max(weights.values(), default=0)
    if top <= 0:
        raise ValueError("no modality has a unit that could hold an expert")
    # dividing by the largest first keeps the sum of huge scores finite
    scaled = {modality: weights.get(modality, 0) / top for modality in scores}
    total = sum(scaled.values())
    return {modality: value / total for modality, value in scaled.items()}


def split_budget(
    scores: Mapping[str, float],
    total: int,
    *,
    caps: Mapping[str, int],
    vision_floor: float = 0.0,
) -> dict[str, int]:
    r"""Return the number of units each modality is granted; they always sum to ``total``.

    .. math:: B^{vis} = \max(\lfloor \phi B \rfloor, \lfloor B r^{vis} + 1/2 \rfloor),
              \qquad B^{lang} = B - B^{vis}

    Budget above the cap of one modality goes to the other one.

    Args:
        scores: Summed proxy score per modality (``vision``, ``language``), non-negative.
        total: Budget :math:`B`, at least 1.
        caps: Eligible units per modality.
        vision_floor: Minimum share :math:`\phi` of vision in ``[0, 1]``: 0 in the paper,
            0.25 in the release.

    Raises:
        ValueError: If the budget is below 1 or larger than the caps allow, or the floor is
            outside its range.

    Source:
        D-MoLE, 2025, https://arxiv.org/abs/2506.11672. The release crashes where a share is 0
        or above a modality's units; here the excess goes to the other modality.

    Example:
        >>> split_budget({"vision": 3.0, "language": 1.0}, 24, caps={"vision": 24, "language": 24})
        {'vision': 18, 'language': 6}
    """
    limit = sum(caps.get(modality, 0) for modality in scores)
    if total < 1:
        raise ValueError(f"budget must be at least 1, got {total}")
    if total > limit:
        raise ValueError(f"budget of {total} experts exceeds the {limit} units that may hold one")
    if not 0 <= vision_floor <= 1:
        raise ValueError(f"vision_floor must be in [0, 1], got {vision_floor}")
    share = score_shares(scores, caps).get("vision", 0.0)
    target = max(math.floor(vision_floor * total), round_half_up(total * share))
    vision_cap = caps.get("vision", 0) if "vision" in scores else 0
    language_cap = caps.get("language", 0) if "language" in scores else 0
    vision = max(min(target, vision_cap), total - language_cap)
    granted = {"vision": vision, "language": total - vision}
    return {modality: granted[modality] for modality in scores}


def select_top_k(scores: Mapping[str, float], k: int, generator: torch.Generator) -> list[str]:
    """Return the names of the ``k`` highest scores, highest first.

    All names above the k-th score are kept. Exact ties at that score are drawn randomly,
    independently of the order of the mapping.

    Args:
        scores: Finite score by name.
        k: Number of names, ``0 <= k <= len(scores)``.
        generator: Source of the draw among exact ties.

    Raises:
        ValueError: If ``k`` is out of range or a score is not finite.

    Source:
        D-MoLE, 2025, https://arxiv.org/abs/2506.11672 (top-k per modality). The draws of
        the release's seed among tied units are not reproduced.
    """
    if not 0 <= k <= len(scores):
        raise ValueError(f"cannot select {k} of {len(scores)} units")
    for name, score in scores.items():
        if not math.isfinite(score):
            raise ValueError(f"score of {name} is {score}")
    if k == 0:
        return []
    ranked = sorted(scores, key=lambda name: (-scores[name], name))
    bound = scores[ranked[k - 1]]
    above = [name for name in ranked if scores[name] > bound]
    tied = [name for name in ranked if scores[name] == bound]
    if len(above) + len(tied) > k:
        draw = torch.randperm(len(tied), generator=generator)[: k - len(above)].tolist()
        tied = [tied[index] for index in sorted(draw)]
    return above + tied


def normalize_scores(
    scores: Mapping[str, float], modalities: Mapping[str, str], how: Normalize
) -> dict[str, float]:
    """Return scores that are comparable across modalities.

    Args:
        scores: Proxy score per unit.
        modalities: Modality of each unit.
        how: ``none`` keeps the scores, ``tower`` divides them by the mean of the unit's modality
            (unless that mean is 0). With ``tower`` the shares equal those of the unit counts, so
            it is meant for one global selection.

    Raises:
        ValueError: If ``how`` is unknown.
    """
    if how not in ("none", "tower"):
        raise ValueError(f"normalize must be 'none' or 'tower', got {how!r}")
    if how == "none":
        return dict(scores)
    groups: dict[str, list[float]] = {}
    for name, score in scores.items():
        groups.setdefault(modalities[name], []).append(score)
    means = {modality: sum(group) / len(group) for modality, group in groups.items()}
    return {name: score / (means[modalities[name]] or 1.0) for name, score in scores.items()}


def spread_evenly(names: Sequence[str], k: int) -> list[str]:
    """Return ``k`` evenly spaced names, in order.

    Raises:
        ValueError: If ``k`` is out of range.

    Example:
        >>> spread_evenly(["a", "b", "c", "d"], 2)
        ['b', 'd']
    """
    if not 0 <= k <= len(names):
        raise ValueError(f"cannot select {k} of {len(names)} units")
    return [names[(2 * i + 1) * len(names) // (2 * k)] for i in range(k)]


def experts_by_depth(counts: Sequence[int], depth: int) -> list[int]:
    """Return the number of experts of each block, first to last.

    The counts belong to groups of consecutive blocks of nearly equal size; earlier groups are the
    larger ones. If there are fewer blocks than groups, each block takes the group at its relative
    depth: the first and the last group are kept, and a single block takes the middle group.

    Args:
        counts: Experts of each group from the first blocks to the last, positive.
        depth: Number of blocks of the modality, positive.

    Raises:
        ValueError: If there is no count, or a count or the depth is not positive.

    Source:
        MoLA, 2024, https://arxiv.org/abs/2402.08562 for the groups of 32 blocks; the rule for other
        depths is ours.

    Example:
        >>> experts_by_depth([2, 4, 6, 8], 6), experts_by_depth([2, 4, 6, 8], 2)
        ([2, 2, 4, 6, 6, 8], [2, 8])
    """
    if not counts or min(counts) < 1:
        raise ValueError(f"counts must be positive, at least one, got {list(counts)}")
    if depth < 1:
        raise ValueError(f"depth must be at least 1, got {depth}")
    groups = len(counts)
    if depth >= groups:
        return [counts[block * groups // depth] for block in range(depth)]
    if depth == 1:
        return [counts[(groups - 1) // 2]]
    return [counts[round_half_up(i * (groups - 1) / (depth - 1))] for i in range(depth)]
