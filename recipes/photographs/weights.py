"""The published weights of EfficientNet-Lite0 as those of `dmole.models.efficientnet_lite`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dmole.models.efficientnet_lite import STAGES

EPSILON = 1e-3
"""Added to the variances of the batch normalization."""


def converted(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the weights of the encoder and of the classifier, ``weight`` and ``bias``.

    Args:
        weights: Weights of the published model, by name.

    Raises:
        KeyError: If a weight is missing.
    """
    found = dict(_folded(weights, "_conv_stem", "_bn0", "stem"))
    found |= _folded(weights, "_conv_head", "_bn1", "head", linear=True)
    for index in range(sum(stage[0] for stage in STAGES)):
        old, new = f"_blocks.{index}", f"blocks.{index}"
        if f"{old}._expand_conv.weight" in weights:
            expand = (f"{old}._expand_conv", f"{old}._bn0", f"{new}.expand")
            found |= _folded(weights, *expand, linear=True)
        found |= _folded(weights, f"{old}._depthwise_conv", f"{old}._bn1", f"{new}.filter")
        project = (f"{old}._project_conv", f"{old}._bn2", f"{new}.project")
        found |= _folded(weights, *project, linear=True)
    return found, {name: weights[f"_fc.{name}"] for name in ("weight", "bias")}


def _folded(
    weights: Mapping[str, Tensor], convolution: str, norm: str, name: str, *, linear: bool = False
) -> dict[str, Tensor]:
    """Return a convolution without bias and its batch normalization as one layer."""
    scale = weights[f"{norm}.weight"] / (weights[f"{norm}.running_var"] + EPSILON).sqrt()
    weight = weights[f"{convolution}.weight"] * scale[:, None, None, None]
    bias = weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale
    return {f"{name}.weight": weight[:, :, 0, 0] if linear else weight, f"{name}.bias": bias}


def load_weights(file: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the converted weights of a published file; it can hold nothing but tensors."""
    return converted(torch.load(file, map_location="cpu", weights_only=True))
