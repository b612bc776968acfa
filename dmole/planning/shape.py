"""Shape of a base model, read from its config; no weights are read or made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dmole.messages import one_line
from dmole.modality import Modality
from dmole.models.discovery import Block, Parts, Patterns, discover
from dmole.models.families import family_of
from dmole.storage.reading import read_json

Linear = tuple[int, int, bool]
"""Input width, output width and whether there is a bias."""

NAMED_MODELS = Path(__file__).with_name("models.json")
"""The parts of ``config.json`` that set the shape of a model, by its name on the hub."""


@dataclass(frozen=True, kw_only=True)
class Stack:
    """The transformer blocks of vision encoder or language model.

    Args:
        width: Width of the hidden states.
        blocks: Number of blocks.
        heads: Query heads of width ``head_width``.
        key_heads: Heads of keys and of values.
        head_width: Width of a head.
        mlp_width: Hidden width of the MLP.
        gated: Whether the MLP has a gate (SwiGLU: three linears instead of two).
        rms_norm: Whether the norms are RMSNorm, which computes in float32, instead of LayerNorm.
        linears: All linears of all blocks.
        parameters: Parameters of all blocks.
    """

    width: int
    blocks: int
    heads: int
    key_heads: int
    head_width: int
    mlp_width: int
    gated: bool
    rms_norm: bool
    linears: tuple[Linear, ...]
    parameters: int

    @property
    def key_width(self) -> int:
        """Total width of all keys."""
        return self.key_heads * self.head_width

    @property
    def linears_of_block(self) -> float:
        """Mean number of linears of a block."""
        return len(self.linears) / self.blocks


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Shape of a multimodal language model.

    Args:
        name: Name of the model.
        config: Its config, of transformers.
        vision: The vision encoder's blocks.
        language: The language model's blocks.
        parameters: Parameters of the whole model, shared ones once.
        linear_parameters: Those of its linears without the output linear, which quantization packs.
        embedding_parameters: Those of the token embeddings.
        head_parameters: Those of an output linear with weights of its own, else 0.
        vocabulary: Rows of the token embeddings.
        embedding_width: Width of a router embedding.
        blocks: All blocks that may hold experts.
        sizes: ``(in_features, out_features)`` of their linears, by path.
    """

    name: str
    config: Any
    vision: Stack
    language: Stack
    parameters: int
    linear_parameters: int
    embedding_parameters: int
    head_parameters: int
    vocabulary: int
    embedding_width: int
    blocks: tuple[Block, ...]
    sizes: Mapping[str, tuple[int, int]]

    @property
    def stacks(self) -> tuple[Stack, Stack]:
        """Vision encoder and language model."""
        return self.vision, self.language


def named_models() -> dict[str, dict[str, Any]]:
    """Return the shapes that come with the package, by name on the hub."""
    models: dict[str, dict[str, Any]] = read_json(NAMED_MODELS)
    return models


def model_shape(
    name_or_path: str, patterns: Patterns | None = None, config: str | None = None
) -> ModelShape:
    """Return the shape of a base model without its weights.

    Args:
        name_or_path: Folder with ``config.json``, ``tiny``, or a name on the hub.
        patterns: Overrides of the discovery of modalities and blocks.
        config: A ``config.json``, a folder with one, or a name, to read instead.

    Raises:
        ValueError: If there is no config, or the class of the model is not known.
    """
    if config is not None and config not in named_models() and not Path(config).exists():
        raise ValueError(f"--model_config {config}: there is no such file, folder or known name")
    content = json.dumps(_config_of(config or name_or_path), sort_keys=True)
    return _shape(name_or_path, content, patterns)


def _config_of(name: str) -> dict[str, Any]:
    """Return the content of a model's config, from a file or from the named models."""
    from dmole.demo.tiny import TINY_PATH

    path = TINY_PATH if name == "tiny" else Path(name).expanduser()
    file = path / "config.json" if path.is_dir() else path
    if file.is_file():
        content: dict[str, Any] = read_json(file)
        if not isinstance(content, dict) or "model_type" not in content:
            raise ValueError(f"{file} is no config of a transformers model: it has no model_type")
        return content
    if path.is_dir():
        raise ValueError(f"{name} has no config.json")
    models = named_models()
    if name not in models:
        raise ValueError(
            f"the shape of {name} is not known here, and there is no such folder: give its "
            "config.json with --model_config PATH"
        )
    return models[name]


@lru_cache(maxsize=32)
def _shape(name: str, text: str, patterns: Patterns | None) -> ModelShape:
    model = _meta_model(name, json.loads(text))
    config: Any = model.config
    parts = discover(model, patterns)
    embeddings = model.get_input_embeddings().weight
    head = model.get_output_embeddings()
    linears = [m for m in model.modules() if isinstance(m, nn.Linear) and m is not head]
    text_config = config.get_text_config()
    if getattr(text_config, "cross_attention_layers", None):
        raise ValueError(f"{config.model_type}: cross-attention cannot be reckoned")
    family = family_of(config)
    return ModelShape(
        name=name,
        config=config,
        vision=_stack(model, parts, "vision", config.vision_config),
        language=_stack(model, parts, "language", text_config),
        parameters=_count(model),
        linear_parameters=sum(linear.weight.numel() for linear in linears),
        embedding_parameters=embeddings.numel(),
        head_parameters=0 if head.weight is embeddings else head.weight.numel(),
        vocabulary=embeddings.shape[0],
        embedding_width=family.vision_width(config.vision_config) + int(text_config.hidden_size),
        blocks=parts.blocks,
        sizes={path: _size(model, path)[:2] for block in parts.blocks for path in block.linears},
    )


def _meta_model(name: str, content: dict[str, Any]) -> Any:
    """Return the model on the meta device, which has shapes and no values."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, AutoModelForImageTextToText

    family = content.pop("model_type")
    try:
        config = AutoConfig.for_model(family, **content)
        with torch.device("meta"):
            return AutoModelForImageTextToText.from_config(config)
    except (ValueError, KeyError, TypeError, AttributeError, StrictDataclassError) as error:
        raise ValueError(
            f"the shape of {name} cannot be read from its config: model_type {family!r} is no "
            "image-text-to-text model of this transformers, or a value is wrong "
            f"({one_line(error)[:200]})"
        ) from error


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _size(model: nn.Module, path: str) -> Linear:
    linear: Any = model.get_submodule(path)
    return linear.in_features, linear.out_features, linear.bias is not None


def _stack(model: nn.Module, parts: Parts, modality: Modality, config: Any) -> Stack:
    blocks = [block for block in parts.blocks if block.modality == modality]
    modules = [model.get_submodule(block.path) for block in blocks]
    linears = [tuple(_size(model, path) for path in block.linears) for block in blocks]
    width = _number(config, "embed_dim", "hidden_size")
    heads = _number(config, "num_attention_heads", "num_heads")
    mlp_width = max(wide for wide, _, _ in linears[0])  # input of the last linear
    return Stack(
        width=width,
        blocks=len(blocks),
        heads=heads,
        key_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        head_width=int(getattr(config, "head_dim", None) or width // heads),
        mlp_width=mlp_width,
        gated=sum(out for _, out, _ in linears[0] if out == mlp_width) > mlp_width,
        rms_norm=any("RMSNorm" in type(m).__name__ for m in modules[0].modules()),
        linears=tuple(size for of_block in linears for size in of_block),
        parameters=sum(map(_count, modules)),
    )


def _number(config: Any, *names: str) -> int:
    return next(int(value) for name in names if (value := getattr(config, name, None)))
