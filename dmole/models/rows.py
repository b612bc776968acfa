"""Number of rows of the vision encoder per sample, by model family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Inputs = dict[str, Tensor]
RowCount = Callable[[Any, Inputs, Tensor], Tensor]
"""Maps config, processed batch and images per sample ``(B,)`` to rows per sample ``(B,)``."""


def rows_per_sample(config: Any, inputs: Inputs, image_counts: Tensor) -> Tensor:
    """Return the number of the vision encoder's rows (images, tiles or packed patches) per sample.

    Args:
        config: Configuration of the transformers model; its ``model_type`` selects the rule.
        inputs: Output of the processor for the batch.
        image_counts: ``(B,)`` images of each sample.

    Returns:
        ``(B,)`` long tensor on the CPU.

    Raises:
        ValueError: If the family's layout of pixel values is unknown.
    """
    counts = image_counts.cpu()
    if inputs.get("pixel_values") is None:
        return torch.zeros_like(counts)
    return ROWS.get(config.model_type, _unknown)(config, inputs, counts)


def _unknown(config: Any, inputs: Inputs, counts: Tensor) -> Tensor:
    """Support the unambiguous layouts: packed patches with a grid, or one row per image."""
    if "image_grid_thw" in inputs:
        return _patches(config, inputs, counts)
    return _images(config, inputs, counts)


def _images(config: Any, inputs: Inputs, counts: Tensor) -> Tensor:
    pixels = inputs["pixel_values"]
    if pixels.ndim == 4 and pixels.shape[0] == int(counts.sum()):
        return counts
    raise ValueError(
        f"cannot tell which of the {pixels.shape[0]} vision rows of a {config.model_type} model "
        f"belong to which of {counts.shape[0]} samples"
    )


def _patches(config: Any, inputs: Inputs, counts: Tensor) -> Tensor:
    """Qwen-VL: the patches of all images are packed along one axis."""
    return _group(inputs["image_grid_thw"].prod(-1).cpu(), counts)


def _llava_next(config: Any, inputs: Inputs, counts: Tensor) -> Tensor:
    return _group(_grid_tiles(config, inputs["image_sizes"]), counts)


def _llava_onevision(config: Any, inputs: Inputs, counts: Tensor) -> Tensor:
    """LLaVA-OneVision splits an image into tiles only if it is the only image of the sample."""
    tiles = _grid_tiles(config, inputs["image_sizes"])
    single = (counts == 1).repeat_interleave(counts)
    return _group(torch.where(single, tiles, 1), counts)


def _padded_tiles(config: Any, inputs: Inputs, counts: Tensor) -> Tensor:
    """Idefics: ``(samples, most tiles, channels, height, width)``; tiles of zeros are padding."""
    real: Tensor = (inputs["pixel_values"] != 0).flatten(2).any(dim=-1).cpu()
    if not real.any():  # the model keeps the first tile then
        real[0, 0] = True
    return real.sum(dim=1)


def _by_tokens(setting: str) -> RowCount:
    """Return the rule for models with a fixed number of image tokens per row."""

    def rows(config: Any, inputs: Inputs, counts: Tensor) -> Tensor:
        tokens: Tensor = (inputs["input_ids"] == config.image_token_id).sum(dim=1).cpu()
        return tokens // int(getattr(config, setting))

    return rows


def _mllama(config: Any, inputs: Inputs, counts: Tensor) -> Tensor:
    """Mllama: images are padded to the largest number in the batch; a row is one image.

    Raises:
        ValueError: If samples with images differ in the number of images. Tokens before the first
            image attend to padding images, so an answer would depend on the other samples.
    """
    numbers = sorted(set(counts[counts > 0].tolist()))
    if len(numbers) > 1:
        raise ValueError(
            f"an mllama batch holds samples with {numbers[0]} and {numbers[-1]} images, whose "
            "answers would depend on each other; set data.batch_size and data.eval_batch_size to 1"
        )
    return torch.full_like(counts, inputs["pixel_values"].shape[1])


def _group(rows_per_image: Tensor, counts: Tensor) -> Tensor:
    """Sum the rows of consecutive images per sample."""
    owner = torch.arange(counts.shape[0]).repeat_interleave(counts)
    return torch.zeros_like(counts).index_add_(0, owner, rows_per_image.to(counts.dtype))


def _grid_tiles(config: Any, image_sizes: Tensor) -> Tensor:
    """Return the number of tiles of each image, thumbnail included, ``(images,)``."""
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


ROWS: dict[str, RowCount] = {
    "llava": _images,
    "paligemma": _images,
    "llava_next": _llava_next,
    "llava_onevision": _llava_onevision,
    "qwen2_vl": _patches,
    "qwen2_5_vl": _patches,
    "qwen3_vl": _patches,
    "idefics3": _padded_tiles,
    "smolvlm": _padded_tiles,
    "internvl": _by_tokens("image_seq_length"),
    "gemma3": _by_tokens("mm_tokens_per_image"),
    "mllama": _mllama,
}
"""Rule of each family, by the ``model_type`` of its config."""
