"""The base model: loading, modalities and blocks, router embeddings."""

from dmole.models.backbone import Backbone
from dmole.models.discovery import Block, Parts, Patterns, discover
from dmole.models.embedder import Embedder
from dmole.models.pretrained import PretrainedBackbone

__all__ = [
    "Backbone",
    "Block",
    "Embedder",
    "Parts",
    "Patterns",
    "PretrainedBackbone",
    "discover",
]
