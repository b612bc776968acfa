"""Allocation of a new expert to units: proxy scores, budgets and allocators."""

from dmole.allocation.allocators import Allocator, DepthAllocator, UniformAllocator
from dmole.allocation.budget import (
    budget_modality,
    experts_by_depth,
    normalize_scores,
    round_half_up,
    score_shares,
    select_top_k,
    split_budget,
    spread_evenly,
    total_budget,
)
from dmole.allocation.condition import ConditionAllocator
from dmole.allocation.initializers import (
    AdapterInitializer,
    EvaInitializer,
    GradientInitializer,
    Initializer,
    KeepInitializer,
)
from dmole.allocation.plan import (
    Allocation,
    AllocationEntry,
    Unit,
    build_units,
    expert_parameters,
)
from dmole.allocation.prompts import PromptAllocator
from dmole.allocation.proxy import score_gradients
from dmole.allocation.sensitivity import SensitivityAllocator

__all__ = [
    "AdapterInitializer",
    "Allocation",
    "AllocationEntry",
    "Allocator",
    "ConditionAllocator",
    "DepthAllocator",
    "EvaInitializer",
    "GradientInitializer",
    "Initializer",
    "KeepInitializer",
    "PromptAllocator",
    "SensitivityAllocator",
    "UniformAllocator",
    "Unit",
    "budget_modality",
    "build_units",
    "expert_parameters",
    "experts_by_depth",
    "normalize_scores",
    "round_half_up",
    "score_gradients",
    "score_shares",
    "select_top_k",
    "split_budget",
    "spread_evenly",
    "total_budget",
]
