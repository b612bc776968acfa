"""The device of a process, known before the trainer is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer

from dmole.strategies import ShardedBaseStrategy

_QUIET: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
_OF_DEVICE = ("accelerator", "devices", "num_nodes", "strategy")


def device_of_process(settings: Mapping[str, Any]) -> torch.device | None:
    """Return the device that a trainer with these settings uses in this process.

    Args:
        settings: Arguments of the trainer.

    Returns:
        The device; None where the base model is loaded into host memory first: without an
        accelerator, with a strategy that divides the model among devices or of its own class,
        or with an own cluster environment.
    """
    chosen = {key: settings[key] for key in _OF_DEVICE if settings.get(key) is not None}
    if not torch.accelerator.is_available():
        return None
    if settings.get("plugins") or not isinstance(chosen.get("strategy", "auto"), str):
        return None
    try:
        strategy = Trainer(**chosen, **_QUIET).strategy
    except (MisconfigurationException, ValueError, TypeError):
        return None  # the trainer of the run refuses them in the same words
    if isinstance(strategy, ShardedBaseStrategy):
        return None  # blocks go to the devices one by one
    device: torch.device = strategy.root_device
    return device
