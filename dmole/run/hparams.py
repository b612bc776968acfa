"""Settings and results of a run as flat values, by which trackers compare runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dmole.demo.tiny import TINY_PATH

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dmole.module import ContinualModule
    from dmole.run.state import SequenceState

Value = str | int | float | bool

FINAL = ("Last", "AVG", "BWT", "Forgetting")
"""Figures of ``metrics.json`` that a tracker compares, those with oracle gates included."""


def run_hyperparameters(state: SequenceState, module: ContinualModule) -> dict[str, Value]:
    """Return the settings that a table of runs shows: plain values by short names.

    Args:
        state: Has data, stream and run folder.
        module: Has allocator, router and optimizer.
    """
    allocator, data = module.allocator, state.data
    optimizer = module.make_optimizer([torch.nn.Parameter(torch.zeros(1))])
    return {
        "name": state.run_dir.parent.name,
        "base": _base_name(module.backbone.name_or_path),
        "allocator": type(allocator).__name__,
        "router": type(module.router).__name__,
        "regularizers": ", ".join(type(term).__name__ for term in module.regularizers) or "none",
        "stream": type(state.stream).__name__,
        "rank": allocator.rank,
        "budget_fraction": allocator.budget_fraction,
        "alpha": module.alpha,
        "optimizer": type(optimizer).__name__,
        "lr": optimizer.defaults["lr"],
        "batch_size": data.batch_size,
        "tasks": len(data.training_task_names),
        "seed": module.seed,
    }


def _base_name(name: str) -> str:
    """Return the name of a base model on the hub, or of its folder, without the path."""
    if name == str(TINY_PATH):
        return "tiny"
    return Path(name).name if name and Path(name).exists() else name or "unnamed"


def final_figures(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the final figures of ``metrics.json`` by tag, in percent, without missing ones.

    Args:
        metrics: Content of ``metrics.json``.

    Example:
        >>> final_figures({"Last": 90.0, "BWT": None, "oracle": {"Last": 95.0}})
        {'final/Last': 90.0, 'final/oracle_Last': 95.0}
    """
    oracle = metrics.get("oracle") or {}
    found = {f"final/{name}": metrics.get(name) for name in FINAL}
    found |= {f"final/oracle_{name}": oracle.get(name) for name in FINAL}
    return {tag: float(value) for tag, value in found.items() if value is not None}
