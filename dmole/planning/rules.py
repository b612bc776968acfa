"""Memory of the gradient rules of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dmole.curriculum.rules import (
    InputPreconditioning,
    InputProjection,
    PastDirection,
    UtilityFreezing,
    WeightSubspace,
)
from dmole.planning.memory import FP32

if TYPE_CHECKING:
    from dmole.planning.memory import ExpertSize


def rule_bytes(rules: Sequence[object], size: ExpertSize, stages: int) -> float:
    """Return the bytes that gradient rules keep on a GPU in the last stage.

    Args:
        rules: The rules.
        size: The expert in training.
        stages: Number of stages.

    Raises:
        ValueError: If one is no class of this package; names it.
    """
    return FP32 * sum(_numbers(rule, size, stages) for rule in rules)


def _numbers(rule: object, size: ExpertSize, stages: int) -> float:
    if type(rule) is PastDirection:  # old parameters, and the way from them in a step
        return 2 * size.parameters
    if type(rule) is UtilityFreezing:  # parameters before a step
        return size.parameters
    if type(rule) is InputPreconditioning:  # sketch matrix, three sums, eigenvectors
        return 5 * sum(wide * min(wide, rule.components) for wide, _ in size.linears)
    if type(rule) is InputProjection:  # the subspace grows with the stages
        kept = [min(wide, stages * rule.components) for wide, _ in size.linears]
        sums = sum(3 * wide * min(wide, rule.components) for wide, _ in size.linears)
        return sums + sum(wide * k for (wide, _), k in zip(size.linears, kept, strict=True))
    if type(rule) is WeightSubspace:
        return sum(rule.preserved * min(pair) * sum(pair) for pair in size.linears)
    raise ValueError(f"the memory of the gradient rule {type(rule).__name__} cannot be reckoned")
