"""A LLaVA with random weights, built on the device, and batches for it; nothing is downloaded."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import torch

from dmole.allocation import SensitivityAllocator
from dmole.cli.plan import read_config
from dmole.data import Batch
from dmole.models import Backbone
from dmole.models.discovery import Patterns
from dmole.module import ContinualModule
from dmole.planning.config import read_setup
from dmole.planning.images import ImageTokens
from dmole.planning.reckoning import Phase, Reckoning
from dmole.planning.setup import Lengths, Setup
from dmole.planning.shape import model_shape
from dmole.routing import AutoencoderRouter
from dmole.storage.files import write_json
from experiments.gpu.common import GIB, Setting

BLOCKS = r"vision_tower.*\.layers\.(\d|1\d|2[0-2])$|language_model\.layers\.\d+$"
"""As in ``configs/models/llava.yaml``: the projector does not read the last vision block."""

SHAPES: dict[str, dict[str, dict[str, Any]]] = {
    "7b": {
        "vision": {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "image_size": 336,
            "patch_size": 14,
        },
        "text": {
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "vocab_size": 32064,
        },
    },
    "medium": {
        "vision": {
            "hidden_size": 512,
            "intermediate_size": 2048,
            "num_hidden_layers": 12,
            "num_attention_heads": 8,
            "image_size": 112,
            "patch_size": 16,
        },
        "text": {
            "hidden_size": 512,
            "intermediate_size": 1376,
            "num_hidden_layers": 12,
            "num_attention_heads": 8,
            "vocab_size": 8192,
        },
    },
    "wide": {
        "vision": {
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 4,
            "num_attention_heads": 16,
            "image_size": 112,
            "patch_size": 16,
        },
        "text": {
            "hidden_size": 2048,
            "intermediate_size": 5504,
            "num_hidden_layers": 4,
            "num_attention_heads": 16,
            "vocab_size": 8192,
        },
    },
    "tiny": {
        "vision": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 8,
        },
        "text": {
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "vocab_size": 320,
        },
    },
}
SIZES = {"7b": (128, 64, 32), "medium": (8, 64, 32), "wide": (8, 64, 32), "tiny": (4, 8, 4)}
"""Rank of an expert (``coin.yaml``), tokens of text in a sample, tokens of an answer."""


def model_config(setting: Setting) -> Any:
    """Return the config of the model."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    shape = SHAPES[setting.base]
    return LlavaConfig(
        vision_config=CLIPVisionConfig(**shape["vision"]),
        text_config=LlamaConfig(max_position_embeddings=4096, **shape["text"]),
        image_token_index=shape["text"]["vocab_size"] - 1,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )


def build_model(setting: Setting, attention: str = "sdpa") -> Any:
    """Return the model with random weights on the device."""
    from transformers import LlavaForConditionalGeneration

    torch.manual_seed(0)
    with torch.device(setting.device):
        model: Any = LlavaForConditionalGeneration._from_config(
            model_config(setting), dtype=setting.dtype, attn_implementation=attention
        )
    model.generation_config.eos_token_id = None  # all answers are equally long
    model.generation_config.pad_token_id = 0
    return model


def coin_allocator(setting: Setting) -> SensitivityAllocator:
    """Return the allocator of ``coin.yaml``, with the rank of the model."""
    coin = coin_setup().allocator
    assert isinstance(coin, SensitivityAllocator)
    return SensitivityAllocator(
        rank=SIZES[setting.base][0],
        budget_fraction=coin.budget_fraction,
        proxy_passes=coin.proxy_passes,
    )


def build_module(setting: Setting, attention: str = "sdpa") -> ContinualModule:
    """Return the model with allocator and router as in ``coin.yaml``, without experts."""
    rank, coin = SIZES[setting.base][0], coin_setup()
    module = ContinualModule(
        Backbone(build_model(setting, attention), None, Patterns(layers=BLOCKS)),
        coin_allocator(setting),
        AutoencoderRouter(components=rank),
        alpha=2.0 * rank,
        dropout=coin.dropout,
        activation_checkpointing=coin.activation_checkpointing,
    )
    return module.to(setting.device)


def recompute(model: Any, enabled: bool) -> None:
    """Switch activation checkpointing of a model, which must have been enabled, on or off."""
    for layer in model.modules():
        if hasattr(layer, "_gradient_checkpointing_func"):
            layer.gradient_checkpointing = enabled


def image_tokens(setting: Setting) -> int:
    """Return the tokens of an image."""
    vision = SHAPES[setting.base]["vision"]
    return int((vision["image_size"] // vision["patch_size"]) ** 2)


def make_batch(setting: Setting, size: int) -> Batch:
    """Return samples of one image and random text; the last half of the text is the answer."""
    text = SIZES[setting.base][1]
    vocabulary = SHAPES[setting.base]["text"]["vocab_size"]
    pixels = SHAPES[setting.base]["vision"]["image_size"]
    device, generator = setting.device, torch.Generator().manual_seed(size)
    words = torch.randint(1, vocabulary - 1, (size, text), generator=generator)
    image = torch.full((size, image_tokens(setting)), vocabulary - 1)
    ids = torch.cat([image, words], dim=1).to(device)  # (B, tokens of an image + text)
    labels = ids.clone()
    labels[:, : -(text // 2)] = -100
    question = words[:, : text // 2].to(device)
    return Batch(
        inputs={
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values": torch.randn(size, 3, pixels, pixels, generator=generator).to(
                device, setting.dtype
            ),
        },
        labels=labels,
        question={"input_ids": question, "attention_mask": torch.ones_like(question)},
        image_counts=torch.ones(size, dtype=torch.long, device=device),
        sample_ids=[str(index) for index in range(size)],
        task_names=["task"] * size,
    )


@functools.lru_cache
def coin_setup() -> Setup:
    """Return what a plan reads of ``coin.yaml``, with one stage on one GPU."""
    setup = read_setup(read_config(["--config", "coin.yaml"]), devices=1)
    return replace(setup, stages=setup.stages[:1], tasks=setup.tasks[:1])


def reckon(setting: Setting, size: int, *, recompute: bool = True) -> dict[str, Phase]:
    """Return what ``dmole plan`` reckons for ``coin.yaml`` with the random model, by phase.

    Args:
        setting: Has the model.
        size: Samples in a batch.
        recompute: Whether the training step recomputes activations.
    """
    rank, text, answer = SIZES[setting.base]
    coin, tokens = coin_setup(), image_tokens(setting)
    setup = replace(
        coin,
        patterns=Patterns(layers=BLOCKS),
        dtype=str(setting.dtype).removeprefix("torch."),
        allocator=coin_allocator(setting),
        router=AutoencoderRouter(components=rank),
        activation_checkpointing=recompute,
        batch_size=size,
        eval_batch_size=size,
        eval_tokens_per_batch=None,
        max_length=None,
        tasks=(replace(coin.tasks[0], new_tokens=answer),),
    )
    config = setting.folder / f"{setting.base}.json"
    write_json(config, model_config(setting).to_dict())
    shape = model_shape(str(config), setup.patterns)
    lengths = Lengths(text=text, answer=text // 2, images=1)
    found = Reckoning(shape, setup, lengths, ImageTokens(tokens + 1, 1, tokens)).phases()
    return {phase.name: phase for phase in found}


def planned(phase: Phase, *held: str) -> str:
    """Return the bytes of a phase as a note, without the parts that the memory held before."""
    left = phase.total - sum(phase.parts[name] for name in held)
    return f"dmole plan: {left / GIB:.1f}"
