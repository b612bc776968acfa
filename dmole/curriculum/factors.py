"""Computes the factor on each modality's learning rate from its difficulty."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


def shares(values: Mapping[str, float]) -> dict[str, float]:
    """Return each value's share of the sum; equal shares if all values are zero."""
    total = math.fsum(values.values())
    if total == 0:
        return {name: 1.0 / len(values) for name in values}
    return {name: value / total for name, value in values.items()}


def update_factors(difficulty: Mapping[str, float], max_ratio: float) -> dict[str, float]:
    """Return the clipped ratio of each difficulty to their mean.

    Args:
        difficulty: Share of each modality in training.
        max_ratio: Largest factor; its inverse is the smallest.

    Example:
        >>> update_factors({"vision": 0.25, "language": 0.75}, max_ratio=2.0)
        {'vision': 0.5, 'language': 1.5}
    """
    mean = math.fsum(difficulty.values()) / len(difficulty)
    if mean == 0:
        return dict.fromkeys(difficulty, 1.0)
    return {
        name: min(max_ratio, max(1.0 / max_ratio, value / mean))
        for name, value in difficulty.items()
    }
