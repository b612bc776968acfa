"""Continual multimodal learning with experts that are allocated, routed and never overwritten."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dmole import _moved
from dmole._version import __version__

if TYPE_CHECKING:
    from dmole.allocation import SensitivityAllocator, UniformAllocator
    from dmole.data import Task
    from dmole.datamodule import ContinualDataModule
    from dmole.inference.loading import load
    from dmole.models import PretrainedBackbone
    from dmole.module import ContinualModule
    from dmole.routing import AutoencoderRouter, OracleRouter, SharedRouter
    from dmole.trainer import ContinualTrainer

__all__ = [
    "AutoencoderRouter",
    "ContinualDataModule",
    "ContinualModule",
    "ContinualTrainer",
    "OracleRouter",
    "PretrainedBackbone",
    "SensitivityAllocator",
    "SharedRouter",
    "Task",
    "UniformAllocator",
    "__version__",
    "load",
]

_moved.install()

_PACKAGES = {
    "AutoencoderRouter": "routing",
    "ContinualDataModule": "datamodule",
    "ContinualModule": "module",
    "ContinualTrainer": "trainer",
    "OracleRouter": "routing",
    "PretrainedBackbone": "models",
    "SensitivityAllocator": "allocation",
    "SharedRouter": "routing",
    "Task": "data",
    "UniformAllocator": "allocation",
    "load": "inference",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that ``dmole --help`` does not import torch."""
    if name not in _PACKAGES:
        raise AttributeError(f"module 'dmole' has no attribute {name!r}")
    return getattr(import_module(f"dmole.{_PACKAGES[name]}"), name)
