"""Tiny random models of all families: two vision and two language layers, width 32."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from families.processors import PINPOINTS

WIDTH = 32
RANGE = 0.3  # flat logits would hide every difference
_TOWER = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
    "initializer_range": RANGE,
}
_TEXT = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "initializer_range": RANGE,
}
_QWEN_TOWER = {
    "depth": 2,
    "num_heads": 2,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "initializer_range": RANGE,
}
_MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
_SIGLIP = {"model_type": "siglip_vision_model", "vision_use_head": False, **_TOWER}

_VISION: dict[str, dict[str, Any]] = {
    "llava": {"model_type": "clip_vision_model", **_TOWER},
    "llava_next": {"model_type": "clip_vision_model", **_TOWER},
    "llava_onevision": _SIGLIP,
    "internvl": {**_TOWER, "image_size": [16, 16], "patch_size": [4, 4]},
    "qwen2_vl": {**_QWEN_TOWER, "embed_dim": 24, "hidden_size": WIDTH, "mlp_ratio": 2},
    "qwen2_5_vl": {
        **_QWEN_TOWER,
        "hidden_size": WIDTH,
        "out_hidden_size": WIDTH,
        "intermediate_size": 48,
        "window_size": 16,
        "fullatt_block_indexes": [1],
    },
    "qwen3_vl": {
        **_QWEN_TOWER,
        "hidden_size": WIDTH,
        "out_hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
    },
    "idefics3": _TOWER,
    "smolvlm": _TOWER,
    "paligemma": {**_SIGLIP, "projection_dim": WIDTH},
    "gemma3": _SIGLIP,
    "mllama": {
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_global_layers": 1,
        "attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
        "max_num_tiles": 2,
        "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
        "intermediate_layers_indices": [0],
        "vision_output_dim": 2 * WIDTH,
        "initializer_range": RANGE,
    },
}
_LANGUAGE: dict[str, dict[str, Any]] = {
    "llava_onevision": {"model_type": "qwen2"},
    "internvl": {"model_type": "qwen2"},
    "qwen2_vl": {"rope_parameters": _MROPE},
    "qwen2_5_vl": {"rope_parameters": _MROPE},
    "qwen3_vl": {"rope_parameters": _MROPE, "head_dim": 16},
    "paligemma": {"model_type": "gemma", "head_dim": 16},
    "gemma3": {
        "head_dim": 16,
        "sliding_window": 64,
        "query_pre_attn_scalar": 16,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "mllama": {"cross_attention_layers": [1]},
}
_NAMES = {
    "llava": "Llava",
    "llava_next": "LlavaNext",
    "llava_onevision": "LlavaOnevision",
    "internvl": "InternVL",
    "qwen2_vl": "Qwen2VL",
    "qwen2_5_vl": "Qwen2_5_VL",
    "qwen3_vl": "Qwen3VL",
    "idefics3": "Idefics3",
    "smolvlm": "SmolVLM",
    "paligemma": "PaliGemma",
    "gemma3": "Gemma3",
    "mllama": "Mllama",
}
FAMILIES = tuple(_NAMES)


def _options(family: str, image: int, tokenizer: Any) -> dict[str, Any]:
    """Settings of the whole model that only some families have."""
    token = tokenizer.convert_tokens_to_ids
    more: dict[str, dict[str, Any]] = {
        "llava_next": {"image_grid_pinpoints": PINPOINTS},
        "llava_onevision": {
            "image_grid_pinpoints": PINPOINTS,
            "video_token_index": token("<video>"),
        },
        "internvl": {"image_seq_length": 4},
        "idefics3": {"scale_factor": 1},
        "smolvlm": {"scale_factor": 1},
        "paligemma": {"projection_dim": WIDTH, "hidden_size": WIDTH, "vocab_size": len(tokenizer)},
        "gemma3": {
            "mm_tokens_per_image": 4,
            "boi_token_index": token("<start_of_image>"),
            "eoi_token_index": token("<end_of_image>"),
        },
    }
    qwen = {
        "video_token_id": token("<video>"),
        "vision_start_token_id": token("<|vision_start|>"),
        "vision_end_token_id": token("<|vision_end|>"),
    }
    more |= dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl"), qwen)
    by_id = family in ("internvl", "idefics3", "smolvlm", *(f for f in FAMILIES if "qwen" in f))
    return {"image_token_id" if by_id else "image_token_index": image, **more.get(family, {})}


def make_model(family: str, processor: Any, vision_feature_layer: int | None = None) -> Any:
    """Build a model; every weight that starts at zero or one is drawn.

    Gates and projections that start at zero would make gemma3 and mllama blind to images.
    """
    tokenizer = processor.tokenizer
    ids = {
        f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("pad", "bos", "eos")
    }
    image = tokenizer.convert_tokens_to_ids("<image>")
    options = _options(family, image, tokenizer)
    if family in ("llava", "llava_next"):
        options["vision_feature_layer"] = (
            -1 if vision_feature_layer is None else vision_feature_layer
        )
    text = {"vocab_size": len(tokenizer), **_TEXT, **ids, **_LANGUAGE.get(family, {})}
    if "qwen" not in family and family not in ("gemma3", "mllama"):
        text.setdefault("model_type", "llama")
    config = getattr(transformers, f"{_NAMES[family]}Config")(
        vision_config=dict(_VISION[family]), text_config=text, **options,
        **({} if family in ("mllama", "gemma3") else ids), tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = getattr(transformers, f"{_NAMES[family]}ForConditionalGeneration")(config)
    if family in ("gemma3", "mllama"):
        _open_eyes(model)
    model.eval()
    model.generation_config.eos_token_id = None  # answers of equal length
    model.generation_config.suppress_tokens = [image]  # a random model would say it
    return model


def _open_eyes(model: Any) -> None:
    for parameter in model.parameters():
        if parameter.numel() and bool((parameter == 0).all()):
            torch.nn.init.normal_(parameter, std=RANGE)
