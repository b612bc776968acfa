"""What rival methods add to the loss so that earlier tasks last. Pure functions, no model."""

from dmole.regularizers.adversarial import masked_mean, reverse_gradient
from dmole.regularizers.distillation import distillation
from dmole.regularizers.elastic import elastic_penalty, merge_importance
from dmole.regularizers.importance import (
    first_order_hypergradient,
    importance_weights,
    neumann_series,
)
from dmole.regularizers.orthogonality import normalized_overlap, overlap

__all__ = [
    "distillation",
    "elastic_penalty",
    "first_order_hypergradient",
    "importance_weights",
    "masked_mean",
    "merge_importance",
    "neumann_series",
    "normalized_overlap",
    "overlap",
    "reverse_gradient",
]
