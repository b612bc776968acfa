"""Gradient rules: what an optimizer step makes of its gradients, one file a rule."""

from dmole.curriculum.rules.base import GradientRule, Training
from dmole.curriculum.rules.direction import PastDirection
from dmole.curriculum.rules.freezing import UtilityFreezing
from dmole.curriculum.rules.preconditioning import InputPreconditioning
from dmole.curriculum.rules.projection import InputProjection
from dmole.curriculum.rules.subspace import WeightSubspace

__all__ = [
    "GradientRule",
    "InputPreconditioning",
    "InputProjection",
    "PastDirection",
    "Training",
    "UtilityFreezing",
    "WeightSubspace",
]
