"""The base model: loading, its parts and blocks, what the router sees of a sample."""

from dmole.models.backbone import Backbone, PretrainedBackbone
from dmole.models.discovery import Block, Parts, Patterns, discover
from dmole.models.embedder import Embedder

__all__ = [
    "Backbone",
    "Block",
    "Embedder",
    "Parts",
    "Patterns",
    "PretrainedBackbone",
    "discover",
]
