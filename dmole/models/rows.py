"""How many rows of the vision tower belong to each sample, by model family."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def rows_per_sample(config: Any, inputs: dict[str, Tensor], image_counts: Tensor) -> Tensor:
    """Count the vision tower's rows (images, tiles or packed patches) of every sample.

    Args:
        config: Configuration of the transformers model.
        inputs: What the processor made of the batch.
        image_counts: ``(B,)`` images of each sample.

    Returns:
        ``(B,)`` long tensor on the CPU.

    Raises:
        ValueError: If the family's layout of pixel values is not known.
    """
    counts = image_counts.cpu()
    pixels = inputs.get("pixel_values")
    if pixels is None:
        return torch.zeros_like(counts)
    if "image_grid_thw" in inputs:  # Qwen-VL: patches of all images packed along one axis
        return _group(inputs["image_grid_thw"].prod(-1).cpu(), counts)
    if config.model_type == "llava_next":
        return _group(_llava_next_tiles(config, inputs["image_sizes"]), counts)
    if pixels.ndim == 5 and pixels.shape[0] == counts.shape[0]:
        # Idefics: (samples, most tiles, channels, height, width); tiles of zeros are padding
        return (pixels != 0).flatten(2).any(dim=-1).sum(dim=1).cpu()
    if pixels.shape[0] == int(counts.sum()):
        return counts
    raise ValueError(
        f"cannot tell which of the {pixels.shape[0]} vision rows of a {config.model_type} model "
        f"belong to which of {counts.shape[0]} samples"
    )


def _group(rows_per_image: Tensor, counts: Tensor) -> Tensor:
    """Sum rows of consecutive images to rows of samples."""
    owner = torch.arange(counts.shape[0]).repeat_interleave(counts)
    return torch.zeros_like(counts).index_add_(0, owner, rows_per_image.to(counts.dtype))


def _llava_next_tiles(config: Any, image_sizes: Tensor) -> Tensor:
    from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

    tiles = [
        image_size_to_num_patches(
            image_size=size,
            grid_pinpoints=config.image_grid_pinpoints,
            patch_size=config.vision_config.image_size,
        )
        for size in image_sizes.tolist()
    ]
    return torch.tensor(tiles)
