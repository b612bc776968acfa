"""Optimizers of the pretraining, and the parameters that each of them updates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from recipes.tiny.muon import Muon

CLIP_NORM = 2.0
NOT_HIDDEN = ("embed", "position", "heads.edges")
"""Name parts of matrices that map from or to labels; AdamW updates them."""


def make_optimizers(
    named: Iterable[tuple[str, nn.Parameter]], lr: float, *, vision_scale: float = 1.0
) -> list[torch.optim.Optimizer]:
    """Return Muon for hidden matrices and AdamW for the rest.

    Args:
        named: Parameters by name; parameters that need no gradient are skipped.
        lr: Peak learning rate of both optimizers.
        vision_scale: Factor on the learning rate of the vision encoder (not of the projector).
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in named:
        if parameter.requires_grad:
            matrix = parameter.dim() == 2 and not any(part in name for part in NOT_HIDDEN)
            slow = vision_scale != 1.0 and "vision" in name
            groups.setdefault((matrix, slow), []).append(parameter)
    optimizers: list[torch.optim.Optimizer] = []
    for (matrix, slow), parameters in groups.items():
        rate = lr * (vision_scale if slow else 1.0)
        if matrix:
            optimizers.append(Muon(parameters, rate))
        else:
            optimizers.append(
                torch.optim.AdamW(parameters, rate, betas=(0.9, 0.95), weight_decay=0.0)
            )
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def update(optimizers: Sequence[torch.optim.Optimizer], factor: float) -> None:
    """Clip the gradients of all optimizers together and step at `factor` times the peak rate."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], CLIP_NORM)
    for group in groups:
        group["lr"] = group["peak"] * factor
    for optimizer in optimizers:
        optimizer.step()
