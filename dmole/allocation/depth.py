"""How many experts a layer gets by its place in the tower. A pure function, no model."""

from __future__ import annotations

from collections.abc import Sequence

from dmole.allocation.budget import round_half_up


def experts_by_depth(counts: Sequence[int], depth: int) -> list[int]:
    """Return the number of experts of each layer, first to last.

    The counts are groups of neighbouring layers, as even as they go, lower groups first to be
    larger. A tower with fewer layers than groups takes the group at each layer's relative depth:
    first and last are kept, and a single layer has the middle one.

    Args:
        counts: Experts of each group from the first layers to the last, positive.
        depth: Layers of the tower, positive.

    Raises:
        ValueError: If there is no count, or a count or the depth is not positive.

    Source:
        MoLA, 2024, https://arxiv.org/abs/2402.08562 for the groups of a tower of 32; the rule for
        other depths is ours.

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
        return [counts[layer * groups // depth] for layer in range(depth)]
    if depth == 1:
        return [counts[(groups - 1) // 2]]
    return [counts[round_half_up(i * (groups - 1) / (depth - 1))] for i in range(depth)]
