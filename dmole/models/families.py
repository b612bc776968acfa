"""What a model family does differently from all others, by the ``model_type`` of its config.

How rows are counted is in :mod:`dmole.models.rows`, how prompts are written in
:mod:`dmole.data.rendering`. A family without an entry here needs none.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

VisionHidden = Callable[[Any, nn.Module, dict[str, Tensor]], Tensor]
"""Maps model, vision tower and processed batch to hidden states ``(rows, tokens, width)``."""


def caught_hidden(model: Any, tower: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Return the vision tower's last hidden states while the model makes its image features."""
    caught: list[Tensor] = []

    def catch(module: nn.Module, args: Any, output: Any) -> None:
        hidden = getattr(output, "last_hidden_state", output)
        caught.append(hidden if isinstance(hidden, Tensor) else hidden[0])

    handle = tower.register_forward_hook(catch)
    try:
        known = inspect.signature(model.get_image_features).parameters
        model.get_image_features(**{key: inputs[key] for key in inputs if key in known})
    finally:
        handle.remove()
    return caught[-1]


def vision_size(config: Any) -> int:
    """Return the width of the hidden states that most towers give."""
    # Qwen2-VL's `hidden_size` is the width behind its merger
    return int(getattr(config, "embed_dim", None) or config.hidden_size)


def padding_mask(model: Any, mask: Tensor) -> Tensor:
    """Return the attention mask of a text alone, from its padding mask ``(B, T)``: that itself."""
    return mask


def nothing(model: nn.Module) -> None:
    """Leave a model as it is."""


@dataclass(frozen=True)
class Family:
    """What is special about a family.

    Args:
        vision_hidden: Hidden states of the vision tower.
        vision_width: Width of those, from the config of the vision tower.
        text_mask: Attention mask with which the language model reads a question alone.
        prepare: Changes the model once, after it was loaded.
        beams_reach_vision: Whether a beam search shows each beam to the vision tower again;
            elsewhere the images are read once, before the beams exist.
    """

    vision_hidden: VisionHidden = caught_hidden
    vision_width: Callable[[Any], int] = vision_size
    text_mask: Callable[[Any, Tensor], Tensor] = padding_mask
    prepare: Callable[[nn.Module], None] = nothing
    beams_reach_vision: bool = False


def _both_ways(model: Any, mask: Tensor) -> Tensor:
    """Return a ``(B, 1, T, T)`` mask in which every token sees all that are not padding.

    PaliGemma reads a question in both directions. Without token types transformers does so only
    where a batch has no padding, and an embedding would depend on the batch mates.
    """
    if "flash" in str(model.config._attn_implementation):
        return mask  # which reads both ways with padding too
    hidden = torch.zeros(mask.shape, dtype=model.dtype, device=mask.device)
    hidden = hidden.masked_fill(mask == 0, torch.finfo(model.dtype).min)
    return hidden[:, None, None, :].expand(-1, 1, mask.shape[1], -1)


def _mllama_hidden(model: Any, tower: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Return ``(samples * images, tiles * tokens, width)``; padding is minus infinity.

    The model has no function for image features, and pads both images and tiles.
    """
    kinds, tiles = inputs["aspect_ratio_ids"], inputs["aspect_ratio_mask"]
    hidden: Tensor = tower(
        pixel_values=inputs["pixel_values"], aspect_ratio_ids=kinds, aspect_ratio_mask=tiles
    ).last_hidden_state  # (samples, images, tiles, tokens, width)
    real = (tiles > 0) & (kinds > 0)[..., None]  # kind 0 is no image
    hidden = hidden.masked_fill(~real[..., None, None], float("-inf"))
    return hidden.flatten(2, 3).flatten(0, 1)


def _skip_without_image(layer: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
    """Give back the input of a cross-attention layer for samples without any image.

    Alone such a sample skips the layer; beside others transformers lets it look at their padding.
    """
    seen = kwargs.get("full_text_row_masked_out_mask")
    if seen is None:
        return output
    has_image = seen.flatten(1).any(dim=1)[:, None, None]  # (B, 1, 1)
    before = args[0] if args else kwargs["hidden_states"]
    first = output if isinstance(output, Tensor) else output[0]
    kept = torch.where(has_image, first, before)
    return kept if isinstance(output, Tensor) else (kept, *output[1:])


def _prepare_mllama(model: nn.Module) -> None:
    for layer in model.modules():
        if hasattr(layer, "cross_attn_attn_gate"):
            layer.register_forward_hook(_skip_without_image, with_kwargs=True)


FAMILIES: dict[str, Family] = {
    "paligemma": Family(text_mask=_both_ways),
    "mllama": Family(
        vision_hidden=_mllama_hidden,
        vision_width=lambda config: int(config.vision_output_dim),
        prepare=_prepare_mllama,
        beams_reach_vision=True,
    ),
}
"""The families that differ."""


def family_of(config: Any) -> Family:
    """Return the family of a model from its config."""
    return FAMILIES.get(str(getattr(config, "model_type", "")), Family())
