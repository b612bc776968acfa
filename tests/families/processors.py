"""Tiny processors of all families, for images of 16 to 56 pixels."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import transformers

from dmole.models.processors import without_video
from families.text import TEMPLATES, make_tokenizer

PINPOINTS = [[16, 32], [32, 16], [32, 32]]
SQUARE = {"height": 16, "width": 16}
_CROPPED = {"size": {"shortest_edge": 16}, "crop_size": SQUARE}
_LLAVA = {
    "patch_size": 8,
    "vision_feature_select_strategy": "default",
    "num_additional_image_tokens": 1,
}
_QWEN = {"patch_size": 4, "merge_size": 2, "size": {"shortest_edge": 64, "longest_edge": 512}}
_TILES = {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 16}}

# family -> (module of the image processor, its class, its settings, settings of the processor)
_RECIPES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "llava": ("clip", "CLIP", _CROPPED, _LLAVA),
    "llava_next": (
        "llava_next",
        "LlavaNext",
        {"image_grid_pinpoints": PINPOINTS, **_CROPPED},
        _LLAVA,
    ),
    "idefics3": ("idefics3", "Idefics3", _TILES, {"image_seq_len": 4}),
    "smolvlm": ("smolvlm", "SmolVLM", _TILES, {"image_seq_len": 4}),
    "paligemma": ("siglip", "Siglip", {"size": SQUARE, "image_seq_length": 4}, {}),
    "gemma3": ("gemma3", "Gemma3", {"size": SQUARE}, {"image_seq_length": 4}),
    "mllama": ("mllama", "Mllama", {"size": SQUARE, "max_image_tiles": 2}, {}),
    "llava_onevision": (
        "llava_onevision",
        "LlavaOnevision",
        {"image_grid_pinpoints": PINPOINTS, "size": SQUARE},
        {"num_image_tokens": 4, "vision_feature_select_strategy": "full"},
    ),
    "internvl": (
        "got_ocr2",
        "GotOcr2",
        {"size": SQUARE, "crop_to_patches": True, "max_patches": 4},
        {"image_seq_length": 4},
    ),
    "qwen2_vl": ("qwen2_vl", "Qwen2VL", _QWEN, {}),
    "qwen2_5_vl": ("qwen2_vl", "Qwen2VL", _QWEN, {}),
    "qwen3_vl": ("qwen2_vl", "Qwen2VL", _QWEN, {}),
}
_PROCESSORS = {
    "llava": "LlavaProcessor",
    "llava_next": "LlavaNextProcessor",
    "llava_onevision": "LlavaOnevisionProcessor",
    "internvl": "InternVLProcessor",
    "qwen2_vl": "Qwen2VLProcessor",
    "qwen2_5_vl": "Qwen2_5_VLProcessor",
    "qwen3_vl": "Qwen3VLProcessor",
    "idefics3": "Idefics3Processor",
    "smolvlm": "SmolVLMProcessor",
    "paligemma": "PaliGemmaProcessor",
    "gemma3": "Gemma3Processor",
    "mllama": "MllamaProcessor",
}


def make_processor(family: str) -> Any:
    """Build the processor of a family; ``llava_plain`` is LLaVA without a chat template."""
    known = "llava" if family == "llava_plain" else family
    module, name, image_settings, settings = _RECIPES[known]
    module = f"transformers.models.{module}.image_processing_pil_{module}"
    images = getattr(import_module(module), f"{name}ImageProcessorPil")(**image_settings)
    cls: Any = getattr(transformers, _PROCESSORS[known])
    parts = [images, make_tokenizer(family)]
    if "video_processor" in cls.get_attributes():
        cls = without_video(cls)
        parts.append(None)
    return cls(*parts, chat_template=TEMPLATES.get(family), **settings)
