"""Widths and devices of the linears in training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from dmole.curriculum.rules.base import Training


def widths_of(training: Training) -> dict[str, tuple[int, torch.device]]:
    """Return inputs and device of each linear in training, by path."""
    found = {}
    for path in training.paths():
        linear = training.library.model.get_submodule(path)
        found[path] = (int(linear.in_features), linear.weight.device)
    return found
