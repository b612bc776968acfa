"""Loss terms of other methods against forgetting: the functions and the regularizers."""

from dmole.regularizers.adversarial import AdversarialTask, reverse_gradient
from dmole.regularizers.anchors import elastic_penalty, merge_anchors, merge_importance
from dmole.regularizers.base import Regularizer, StageView, Step
from dmole.regularizers.branches import BranchFreezing
from dmole.regularizers.distillation import Distillation, distillation
from dmole.regularizers.elastic import ElasticWeights
from dmole.regularizers.importance import (
    first_order_hypergradient,
    importance_weights,
)
from dmole.regularizers.intruders import IntruderReduction, find_intruders, reduced_update
from dmole.regularizers.key_elements import KeyElements, key_element_size, key_elements
from dmole.regularizers.mixture import (
    LoadBalance,
    RouterEntropy,
    load_balance,
    soft_load_balance,
)
from dmole.regularizers.momentum import MomentumMerge
from dmole.regularizers.orthogonality import Orthogonality, normalized_overlap, overlap
from dmole.regularizers.replay_importance import ReplayImportance

__all__ = [
    "AdversarialTask",
    "BranchFreezing",
    "Distillation",
    "ElasticWeights",
    "IntruderReduction",
    "KeyElements",
    "LoadBalance",
    "MomentumMerge",
    "Orthogonality",
    "Regularizer",
    "ReplayImportance",
    "RouterEntropy",
    "StageView",
    "Step",
    "distillation",
    "elastic_penalty",
    "find_intruders",
    "first_order_hypergradient",
    "importance_weights",
    "key_element_size",
    "key_elements",
    "load_balance",
    "merge_anchors",
    "merge_importance",
    "normalized_overlap",
    "overlap",
    "reduced_update",
    "reverse_gradient",
    "soft_load_balance",
]
