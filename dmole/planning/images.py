"""Tokens of an image, by family of base model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ImageTokens:
    """The most tokens of one image.

    Args:
        patches: Tokens in the vision encoder, all tiles together.
        tiles: Sequences that these are split into; attention stays within one.
        tokens: Tokens in the language model.
    """

    patches: int
    tiles: int
    tokens: int


def image_tokens(config: Any, settings: Mapping[str, Any] | None = None) -> ImageTokens:
    """Return the most tokens of an image.

    Args:
        config: Config of the base model, of transformers.
        settings: ``image_settings`` of the backbone, over the defaults of its processor.

    Raises:
        ValueError: If the rule of the family is not known.
    """
    family = str(config.model_type)
    if family not in _RULES:
        raise ValueError(
            f"model_type {family}: the tokens of an image are not known: set --patches and "
            "--image_tokens"
        )
    return _RULES[family](config, settings or {})


def _side(vision: Any) -> int:
    """Return the patches along one side of a square image."""
    size, patch = (
        value[0] if isinstance(value, (list, tuple)) else value
        for value in (vision.image_size, vision.patch_size)
    )
    return int(size) // int(patch)


def _class_tokens(vision: Any) -> int:
    return 0 if "siglip" in str(vision.model_type) else 1


def _whole(config: Any, settings: Mapping[str, Any]) -> ImageTokens:
    patches = _side(config.vision_config) ** 2
    return ImageTokens(patches + _class_tokens(config.vision_config), 1, patches)


def _gemma3(config: Any, settings: Mapping[str, Any]) -> ImageTokens:
    crops = 1 + 4 * bool(settings.get("do_pan_and_scan"))
    patches = _side(config.vision_config) ** 2
    return ImageTokens(crops * patches, crops, crops * int(config.mm_tokens_per_image))


def _aya_vision(config: Any, settings: Mapping[str, Any]) -> ImageTokens:
    side = _side(config.vision_config)
    patches = side**2 + _class_tokens(config.vision_config)
    return ImageTokens(patches, 1, (side // int(config.downsample_factor)) ** 2)


def _llava_next(config: Any, settings: Mapping[str, Any]) -> ImageTokens:
    vision, side, grids = config.vision_config, _side(config.vision_config), _grids(config)
    tiles = 1 + max(h * w for h, w in grids)
    rows = side * max(h for h, w in grids if h * w == tiles - 1)  # each ends with a token
    return ImageTokens(tiles * (side**2 + _class_tokens(vision)), tiles, tiles * side**2 + rows)


def _grids(config: Any) -> list[tuple[int, int]]:
    """Return the rows and columns of tiles that an image may be cut into."""
    size = int(config.vision_config.image_size)
    return [(int(high) // size, int(wide) // size) for high, wide in config.image_grid_pinpoints]


def _onevision(config: Any, settings: Mapping[str, Any]) -> ImageTokens:
    side = _side(config.vision_config)
    limit = int(str(config.vision_aspect_ratio).rpartition("_")[2])
    grid = math.isqrt(limit) * side  # the tokens of larger grids are scaled down to it
    tiles = 1 + max(h * w for h, w in _grids(config))
    return ImageTokens(tiles * side**2, tiles, side**2 + grid * (grid + 1))


def _internvl(config: Any, settings: Mapping[str, Any]) -> ImageTokens:
    most = int(settings.get("max_patches", 12)) if settings.get("crop_to_patches", True) else 0
    tiles = most + 1 if most > 1 else 1
    patches = _side(config.vision_config) ** 2
    joined = round(patches * float(config.downsample_ratio) ** 2)
    return ImageTokens(tiles * (patches + 1), tiles, tiles * joined)


def _packed(default: int) -> Callable[[Any, Mapping[str, Any]], ImageTokens]:
    """Return the rule of families that keep the shape of images, by their most pixels."""

    def rule(config: Any, settings: Mapping[str, Any]) -> ImageTokens:
        vision = config.vision_config
        pixels = settings.get("max_pixels") or default
        if not isinstance(pixels, int) or pixels < 1:
            raise ValueError(f"image_settings: max_pixels must be at least 1, got {pixels!r}")
        patches = pixels // int(vision.patch_size) ** 2
        return ImageTokens(patches, 1, patches // int(vision.spatial_merge_size) ** 2)

    return rule


def _idefics3(config: Any, settings: Mapping[str, Any]) -> ImageTokens:
    vision, side = config.vision_config, _side(config.vision_config)
    longest = int((settings.get("size") or {}).get("longest_edge", 4 * vision.image_size))
    across = -(-longest // int(vision.image_size))
    tiles = across**2 + 1 if across > 1 else 1
    joined = (side // int(config.scale_factor)) ** 2
    return ImageTokens(tiles * side**2, tiles, tiles * joined)


_RULES: dict[str, Callable[[Any, Mapping[str, Any]], ImageTokens]] = {
    "llava": _whole,
    "paligemma": _whole,
    "gemma3": _gemma3,
    "aya_vision": _aya_vision,
    "llava_next": _llava_next,
    "llava_onevision": _onevision,
    "internvl": _internvl,
    "qwen2_vl": _packed(12_845_056),
    "qwen2_5_vl": _packed(12_845_056),
    "qwen3_vl": _packed(16_777_216),
    "idefics3": _idefics3,
    "smolvlm": _idefics3,
}
