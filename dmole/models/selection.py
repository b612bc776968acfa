"""Selection of samples from the inputs of a model, whose image tensors differ by family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dmole.models.rows import Inputs, rows_per_sample
from dmole.transfer import to_device

_IMAGE_KEYS = ("pixel", "image", "aspect_ratio", "batch_num_images")
_BY_SAMPLE = ("idefics3", "smolvlm", "mllama")
"""Families that pad images or tiles to ``(samples, most images, ...)``."""


def select_samples(
    config: Any,
    inputs: Inputs,
    image_counts: Tensor,
    chosen: Sequence[int],
    rows: Tensor | None = None,
) -> Inputs:
    """Return the inputs of some samples of a batch; padding stays as it is.

    Tensors of images have one entry a sample, an image, or a row of the vision encoder. They are
    left out if no chosen sample has an image, as a processor leaves them out.

    Args:
        config: Configuration of the transformers model.
        inputs: Output of the processor for the batch.
        image_counts: ``(B,)`` images of each sample.
        chosen: Indices of samples, each once, in ascending order.
        rows: ``(B,)`` rows of the vision encoder of each sample, on the CPU, if they are known.

    Raises:
        ValueError: If the entries of a tensor cannot be assigned to samples; names the tensor.
    """
    counts = image_counts.cpu()
    kept = torch.zeros(len(counts), dtype=torch.bool)  # (B,)
    kept[list(chosen)] = True
    with_image, has_image = counts > 0, bool(counts[kept].any())
    by_sample = config.model_type in _BY_SAMPLE
    rows = rows_per_sample(config, inputs, counts) if rows is None else rows
    by_row = kept.repeat_interleave(rows)  # (rows,)
    by_image = kept.repeat_interleave(counts)  # (images,)

    def entries(key: str, value: Tensor) -> Tensor:
        if key == "batch_num_images":  # LLaVA-OneVision leaves samples without images out
            return kept[with_image]
        options = (kept,) if by_sample else (by_row, by_image)
        for mask in options:
            if len(mask) == len(value):
                return mask
        raise ValueError(
            f"cannot tell which of the {len(value)} entries of {key} of a {config.model_type} "
            f"model belong to which of {len(kept)} samples"
        )

    selected = {}
    for key, value in inputs.items():
        if not key.startswith(_IMAGE_KEYS):
            selected[key] = take(value, kept)
        elif has_image:
            selected[key] = take(value, entries(key, value))
    return selected


def take(value: Tensor, mask: Tensor) -> Tensor:
    """Return the entries of a tensor by a mask on the CPU, without waiting for its device."""
    return value.index_select(0, to_device(mask.nonzero().flatten(), value.device))
