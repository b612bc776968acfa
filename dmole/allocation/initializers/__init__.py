"""Initializers: the values that a new expert starts with."""

from dmole.allocation.initializers.adapter import AdapterInitializer
from dmole.allocation.initializers.base import Initializer, NewLinear, Values
from dmole.allocation.initializers.eva import EvaInitializer
from dmole.allocation.initializers.gradient import GradientInitializer
from dmole.allocation.initializers.keep import KeepInitializer

__all__ = [
    "AdapterInitializer",
    "EvaInitializer",
    "GradientInitializer",
    "Initializer",
    "KeepInitializer",
    "NewLinear",
    "Values",
]
