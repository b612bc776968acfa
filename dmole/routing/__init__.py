"""Which experts a sample uses: embeddings, autoencoders, gates and the routers on top."""

from dmole.routing.autoencoder import (
    PCAReconstructor,
    Reconstructor,
    ReconstructorStack,
    Weights,
    parameter_count,
)
from dmole.routing.autoencoder_router import AutoencoderRouter
from dmole.routing.embedding import EmbeddingCache, combine, masked_max_pool
from dmole.routing.gates import (
    batch_vote,
    choose_partner,
    gate_set_name,
    gates_from_order,
    select_experts,
)
from dmole.routing.preprocessing import Preprocessor, normalize_rows, quantile_table
from dmole.routing.routers import (
    AllExpertsRouter,
    OracleRouter,
    Router,
    RouterFit,
    Routing,
    SharedRouter,
)
from dmole.routing.trained import MLPReconstructor

__all__ = [
    "AllExpertsRouter",
    "AutoencoderRouter",
    "EmbeddingCache",
    "MLPReconstructor",
    "OracleRouter",
    "PCAReconstructor",
    "Preprocessor",
    "Reconstructor",
    "ReconstructorStack",
    "Router",
    "RouterFit",
    "Routing",
    "SharedRouter",
    "Weights",
    "batch_vote",
    "choose_partner",
    "combine",
    "gate_set_name",
    "gates_from_order",
    "masked_max_pool",
    "normalize_rows",
    "parameter_count",
    "quantile_table",
    "select_experts",
]
