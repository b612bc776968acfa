"""The base model: loading, its parts and layers, what the router sees of a sample."""

from dmole.models.backbone import Backbone, PretrainedBackbone
from dmole.models.discovery import LayerSpec, Parts, Patterns, discover
from dmole.models.embedder import Embedder

__all__ = [
    "Backbone",
    "Embedder",
    "LayerSpec",
    "Parts",
    "Patterns",
    "PretrainedBackbone",
    "discover",
]
