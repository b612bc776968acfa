"""A base model: a plain transformers `LlavaForConditionalGeneration` and its initial weights."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from dmole.demo.world.scenes import random_scene
from dmole.demo.world.world import SIZE, Scene
from recipes.tiny.tokenizer import BOS, EOS, IMAGE, PAD

PATCH = 8
PATCHES = (SIZE // PATCH) ** 2
HEAD_WIDTH = 32
CONTENT_SHARE = 0.6
"""Share of the language heads that initially attend to equal content, rounded down."""
WHITENING_SCENES = 1500
OUTPUT_PROJECTIONS = ("out_proj", "o_proj", "fc2", "down_proj")
SCALED_DEPTH = 4
"""Depth of a tower without further scaling of its output projections."""


@dataclass(frozen=True)
class ModelShape:
    """Depths and widths; by default those of the tiny model.

    Args:
        vision_blocks: Blocks of the vision encoder.
        vision_width: Its width; the width of its MLPs is four times that.
        vision_heads: Its attention heads.
        language_blocks: Blocks of the language model.
        language_width: Its width.
        language_heads: Its attention heads, of width 32.
        language_hidden: Width of its MLPs.
    """

    vision_blocks: int = 4
    vision_width: int = 128
    vision_heads: int = 4
    language_blocks: int = 4
    language_width: int = 160
    language_heads: int = 5
    language_hidden: int = 448


def build_model(vocabulary: int, shape: ModelShape) -> Any:
    """Return the untrained model of a shape."""
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    vision = CLIPVisionConfig(
        hidden_size=shape.vision_width,
        intermediate_size=shape.vision_width * 4,
        num_hidden_layers=shape.vision_blocks,
        num_attention_heads=shape.vision_heads,
        image_size=SIZE,
        patch_size=PATCH,
        hidden_act="gelu",
    )
    language = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=shape.language_width,
        intermediate_size=shape.language_hidden,
        num_hidden_layers=shape.language_blocks,
        num_attention_heads=shape.language_heads,
        num_key_value_heads=shape.language_heads,
        head_dim=HEAD_WIDTH,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=language,
        image_token_id=IMAGE,
        image_seq_length=PATCHES,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    return LlavaForConditionalGeneration(config)


def to_pixel_values(images: Sequence[npt.NDArray[np.uint8]]) -> Tensor:
    """Return pixel values as from the processor: ``(images, 3, height, width)`` in [-1, 1]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def project_patches(model: Any, pixel_values: Tensor) -> Tensor:
    """Return the projected patches, the input of the language model, ``(images, 64, width)``."""
    hidden = model.model.vision_tower(pixel_values).last_hidden_state[:, 1:]
    features: Tensor = model.model.multi_modal_projector(hidden)
    return features


@torch.no_grad()
def initialize(
    model: Any, seed: int, draw_scene: Callable[[random.Random], Scene] = random_scene
) -> None:
    """Fill the model with initial weights that make it trainable in minutes.

    Matrices are drawn from N(0, 1 / fan_in); output projections are scaled down, in towers deeper
    than four blocks by a further square root of the depth, as in GPT-2. The patch
    convolution whitens the patches of the scenes, and the position table holds sine waves of
    comparable magnitude. With the usual initialization, patch embeddings hardly differ and are
    much larger than position embeddings.
    """
    generator = torch.Generator().manual_seed(seed)
    vision, language = model.config.vision_config, model.config.text_config
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
        elif parameter.dim() == 2 and "position" not in name:
            parameter.normal_(0, parameter.shape[1] ** -0.5, generator=generator)
            if any(part in name for part in OUTPUT_PROJECTIONS):
                tower = vision if "vision" in name else language
                parameter.mul_(0.3 * (SCALED_DEPTH / tower.num_hidden_layers) ** 0.5)
    for block in model.model.language_model.layers:
        block.self_attn.o_proj.weight.mul_(0.3)
        block.mlp.down_proj.weight.mul_(0.3)
        # equal key and query weights: these heads initially attend to equal content
        rows = int(CONTENT_SHARE * language.num_attention_heads) * HEAD_WIDTH
        block.self_attn.k_proj.weight[:rows] = block.self_attn.q_proj.weight[:rows]
    _whiten_patches(model, seed, draw_scene)


def _whiten_patches(model: Any, seed: int, draw_scene: Callable[[random.Random], Scene]) -> None:
    width = model.config.vision_config.hidden_size
    embeddings = next(
        module for module in model.modules() if type(module).__name__ == "CLIPVisionEmbeddings"
    )
    rng = random.Random(f"patches-{seed}")
    pixels = to_pixel_values([draw_scene(rng).pixels for _ in range(WHITENING_SCENES)])
    patches = (
        functional.unfold(pixels, PATCH, stride=PATCH).transpose(1, 2).reshape(-1, 3 * PATCH**2)
    )
    mean = patches.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov((patches - mean).T))
    values, vectors = values.flip(0)[:width], vectors.flip(1)[:, :width]
    weight = 0.5 * (vectors / (values + 1e-3).sqrt()).T
    embeddings.patch_embedding.weight.copy_(weight.view(width, 3, PATCH, PATCH))
    # the convolution has no bias, so the position table subtracts the mean
    table = sine_table(SIZE // PATCH, width) * 0.7 - weight @ mean
    embeddings.position_embedding.weight[1:] = table
    embeddings.position_embedding.weight[0] = 0
    embeddings.class_embedding.zero_()


def sine_table(side: int, width: int) -> Tensor:
    """Return 2-D sine position encodings of shape ``(side ** 2, width)``."""
    quarter = width // 4
    frequencies = torch.exp(-torch.arange(quarter) / quarter * math.log(30.0))
    angles = torch.arange(side).float()[:, None] * frequencies[None]
    code = torch.cat([angles.sin(), angles.cos()], 1)
    columns = code[None].expand(side, side, -1)
    rows = code[:, None].expand(side, side, -1)
    return torch.cat([columns, rows], -1).reshape(side * side, width)
