"""Shapes of base models are read from configs alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dmole.models import PretrainedBackbone
from dmole.planning.images import ImageTokens, image_tokens
from dmole.planning.shape import model_shape, named_models

SHIPPED = Path(__file__).resolve().parents[2] / "configs" / "models"


def test_the_shape_of_a_model_is_that_of_the_built_one() -> None:
    shape, backbone = model_shape("tiny"), PretrainedBackbone("tiny")
    assert shape.parameters == backbone.parameter_count()
    assert shape.sizes == backbone.linear_shapes()
    assert shape.embedding_width == backbone.embedding_width
    assert (shape.head_parameters, shape.language.gated, shape.vision.gated) == (0, True, False)
    assert (shape.language.heads, shape.language.head_width, shape.language.mlp_width) == (
        *(5, 32, 448),
    )


def test_a_folder_with_nothing_but_a_config_is_enough(tmp_path: Path) -> None:
    content = named_models()["llava-hf/llava-1.5-7b-hf"]
    (tmp_path / "config.json").write_text(json.dumps(content))
    found, named = model_shape(str(tmp_path)), model_shape("llava-hf/llava-1.5-7b-hf")
    assert (found.parameters, found.language) == (named.parameters, named.language)
    assert model_shape("unknown/name", config=str(tmp_path)).parameters == found.parameters


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"hidden_size": 4}', "has no model_type"),
        ('{"model_type": "bert"}', "model_type 'bert' is no image-text-to-text model"),
    ],
)
def test_a_config_of_another_model_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        model_shape(str(tmp_path))


def test_an_unknown_name_is_refused_with_the_flag() -> None:
    with pytest.raises(ValueError, match=r"shape of org/none is not known.*--model_config PATH"):
        model_shape("org/none")


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("llava-hf/llava-1.5-7b-hf", {}, ImageTokens(577, 1, 576)),
        ("OpenGVLab/InternVL3-2B-hf", {"max_patches": 12}, ImageTokens(13 * 1025, 13, 13 * 256)),
        ("OpenGVLab/InternVL3-2B-hf", {"crop_to_patches": False}, ImageTokens(1025, 1, 256)),
        ("Qwen/Qwen2.5-VL-7B-Instruct", {"max_pixels": 1_003_520}, ImageTokens(5120, 1, 1280)),
        ("google/gemma-3-4b-it", {"do_pan_and_scan": False}, ImageTokens(4096, 1, 256)),
        ("smollm2", {}, ImageTokens(65, 1, 16)),
        (
            "HuggingFaceM4/Idefics3-8B-Llama3",
            {"size": {"longest_edge": 1456}},
            ImageTokens(17 * 676, 17, 17 * 169),
        ),
        ("llava-hf/llava-v1.6-mistral-7b-hf", {}, ImageTokens(5 * 577, 5, 5 * 576 + 48)),
    ],
)
def test_the_tokens_of_an_image_follow_family_and_settings(
    name: str, settings: dict[str, object], expected: ImageTokens
) -> None:
    assert image_tokens(model_shape(name).config, settings) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "folder has no config.json"),
        ({"model_type": "bert"}, "'bert' is no image-text-to-text model"),
        (
            {"model_type": "llava", "vision_config": {"hidden_size": "big"}},
            "Field 'hidden_size' expected int, got str",
        ),
        ({"model_type": "mllama"}, "mllama: cross-attention cannot be reckoned"),
    ],
)
def test_a_config_without_a_shape_is_refused_in_one_line(
    tmp_path: Path, content: dict[str, Any] | None, message: str
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    if content is not None:
        (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as caught:
        model_shape(str(folder))
    assert len(str(caught.value)) < 500


def test_a_missing_model_config_is_named() -> None:
    with pytest.raises(ValueError, match=r"--model_config nofile\.json: there is no such file"):
        model_shape("tiny", config="nofile.json")
