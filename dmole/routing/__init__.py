"""Selection of a sample's experts: embeddings, autoencoders, gates and routers."""

from typing import Any

from dmole._moved import moved_name
from dmole.routing.arrow import ArrowMixing, ArrowRouter, arrow_prototype
from dmole.routing.autoencoder import (
    PCAReconstructor,
    Reconstructor,
    ReconstructorStack,
    Weights,
    parameter_count,
)
from dmole.routing.autoencoder_router import AutoencoderRouter
from dmole.routing.dual import DualMixing
from dmole.routing.embedding import EmbeddingCache, combine, masked_max_pool
from dmole.routing.gates import (
    batch_vote,
    choose_partner,
    gate_set_name,
    gates_from_order,
    select_experts,
)
from dmole.routing.generative import GenerativeRouter, NameTree
from dmole.routing.key_router import KeyRouter, fit_key, key_scores
from dmole.routing.mixing import BranchMixing, CommonMixing, Mixing, TokenMixing
from dmole.routing.mixture_routers import CommonExpertRouter, TokenRouter
from dmole.routing.preprocessing import Preprocessor, normalize_rows, quantile_table
from dmole.routing.prompt_router import PromptRouter, guidance
from dmole.routing.prototype_routers import AnchorRouter, TextPrototypeRouter
from dmole.routing.query import Phase, RouteQuery
from dmole.routing.ridge_router import RidgeRouter
from dmole.routing.routers import (
    AllExpertsRouter,
    LearningRouter,
    OracleRouter,
    Router,
    RouterFit,
    Routing,
    SharedRouter,
)
from dmole.routing.separable import SeparableMixing, SeparableRouter
from dmole.routing.token_gates import (
    DenseGate,
    EntropyGate,
    OneHotGate,
    TokenGate,
    TokenWeights,
    TopKGate,
    normalized_entropy,
)
from dmole.routing.trained import MLPReconstructor

__all__ = [
    "AllExpertsRouter",
    "AnchorRouter",
    "ArrowMixing",
    "ArrowRouter",
    "AutoencoderRouter",
    "BranchMixing",
    "CommonExpertRouter",
    "CommonMixing",
    "DenseGate",
    "DualMixing",
    "EmbeddingCache",
    "EntropyGate",
    "GenerativeRouter",
    "KeyRouter",
    "LearningRouter",
    "MLPReconstructor",
    "Mixing",
    "NameTree",
    "OneHotGate",
    "OracleRouter",
    "PCAReconstructor",
    "Phase",
    "Preprocessor",
    "PromptRouter",
    "Reconstructor",
    "ReconstructorStack",
    "RidgeRouter",
    "RouteQuery",
    "Router",
    "RouterFit",
    "Routing",
    "SeparableMixing",
    "SeparableRouter",
    "SharedRouter",
    "TextPrototypeRouter",
    "TokenGate",
    "TokenMixing",
    "TokenRouter",
    "TokenWeights",
    "TopKGate",
    "Weights",
    "arrow_prototype",
    "batch_vote",
    "choose_partner",
    "combine",
    "fit_key",
    "gate_set_name",
    "gates_from_order",
    "guidance",
    "key_scores",
    "masked_max_pool",
    "normalize_rows",
    "normalized_entropy",
    "parameter_count",
    "quantile_table",
    "select_experts",
]


def __getattr__(name: str) -> Any:
    return moved_name(__name__, name)
