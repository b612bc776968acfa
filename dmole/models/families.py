"""Special cases of model families, by the ``model_type`` of the config.

Row counts are in :mod:`dmole.models.rows`, prompt formats in :mod:`dmole.data.rendering`. Most
families need no entry here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

VisionHidden = Callable[[Any, nn.Module, dict[str, Tensor]], Tensor]
"""Maps model, vision encoder and processed batch to hidden states ``(rows, tokens, width)``."""


def hooked_hidden(model: Any, encoder: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Return the vision encoder's last hidden states, by a hook on the model's image features."""
    states: list[Tensor] = []

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        hidden = getattr(output, "last_hidden_state", output)
        states.append(hidden if isinstance(hidden, Tensor) else hidden[0])

    handle = encoder.register_forward_hook(hook)
    try:
        parameters = inspect.signature(model.get_image_features).parameters
        model.get_image_features(**{key: inputs[key] for key in inputs if key in parameters})
    finally:
        handle.remove()
    return states[-1]


def vision_size(config: Any) -> int:
    """Return the width of the hidden states of most vision encoders."""
    # Qwen2-VL's `hidden_size` is the width after its merger
    return int(getattr(config, "embed_dim", None) or config.hidden_size)


def padding_mask(model: Any, mask: Tensor) -> Tensor:
    """Return the padding mask ``(B, T)`` of a text as its attention mask."""
    return mask


def keep_unchanged(model: nn.Module) -> None:
    """Do not change the model."""


@dataclass(frozen=True)
class Family:
    """Special cases of one family.

    Args:
        vision_hidden: Returns the hidden states of the vision encoder.
        vision_width: Returns their width from the config of the vision encoder.
        text_mask: Returns the language model's attention mask for a question without images.
        prepare: Changes the model once, after loading.
        beams_reach_vision: Whether the vision encoder runs once per beam of a beam search;
            by default it runs once per image, before the beams are made.
    """

    vision_hidden: VisionHidden = hooked_hidden
    vision_width: Callable[[Any], int] = vision_size
    text_mask: Callable[[Any, Tensor], Tensor] = padding_mask
    prepare: Callable[[nn.Module], None] = keep_unchanged
    beams_reach_vision: bool = False


def _bidirectional_mask(model: Any, mask: Tensor) -> Tensor:
    """Return a ``(B, 1, T, T)`` mask in which every token sees all that are not padding.

    PaliGemma reads a question in both directions. Without token types transformers does so only
    for batches without padding, and an embedding would depend on the other samples.
    """
    if "flash" in str(model.config._attn_implementation):
        return mask  # flash attention is bidirectional with padding, too
    hidden = torch.zeros(mask.shape, dtype=model.dtype, device=mask.device)
    hidden = hidden.masked_fill(mask == 0, torch.finfo(model.dtype).min)
    return hidden[:, None, None, :].expand(-1, 1, mask.shape[1], -1)


def _mllama_hidden(model: Any, encoder: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Return ``(samples * images, tiles * tokens, width)``; padding is minus infinity.

    The model has no function for image features, and pads both images and tiles.
    """
    kinds, tiles = inputs["aspect_ratio_ids"], inputs["aspect_ratio_mask"]
    hidden: Tensor = encoder(
        pixel_values=inputs["pixel_values"], aspect_ratio_ids=kinds, aspect_ratio_mask=tiles
    ).last_hidden_state  # (samples, images, tiles, tokens, width)
    real = (tiles > 0) & (kinds > 0)[..., None]  # kind 0 is padding
    hidden = hidden.masked_fill(~real[..., None, None], float("-inf"))
    return hidden.flatten(2, 3).flatten(0, 1)


def _skip_without_image(block: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
    """Return the input of a cross-attention block for samples without images.

    A batch without images skips the block; in other batches transformers lets such a sample
    attend to padding images.
    """
    mask = kwargs.get("full_text_row_masked_out_mask")
    if mask is None:
        return output
    has_image = mask.flatten(1).any(dim=1)[:, None, None]  # (B, 1, 1)
    hidden = args[0] if args else kwargs["hidden_states"]
    first = output if isinstance(output, Tensor) else output[0]
    kept = torch.where(has_image, first, hidden)
    return kept if isinstance(output, Tensor) else (kept, *output[1:])


def _prepare_mllama(model: nn.Module) -> None:
    for block in model.modules():
        if hasattr(block, "cross_attn_attn_gate"):
            block.register_forward_hook(_skip_without_image, with_kwargs=True)


FAMILIES: dict[str, Family] = {
    "paligemma": Family(text_mask=_bidirectional_mask),
    "mllama": Family(
        vision_hidden=_mllama_hidden,
        vision_width=lambda config: int(config.vision_output_dim),
        prepare=_prepare_mllama,
        beams_reach_vision=True,
    ),
}
"""Families with special cases."""


def family_of(config: Any) -> Family:
    """Return the family of a model from its config."""
    return FAMILIES.get(str(getattr(config, "model_type", "")), Family())
