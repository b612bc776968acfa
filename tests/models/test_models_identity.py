"""The parts of a base model that its answers depend on, and what a message says of a change."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from families import FAMILIES, make_backbone, make_batch, make_samples

from dmole.demo.tiny import TINY_PATH
from dmole.models import Backbone, PretrainedBackbone
from dmole.models.identity import (
    ADJUSTABLE,
    FIXED,
    NUMERICS,
    Parts,
    base_parts,
    changed_parts,
)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_all_parts_and_its_use_changes_none(family: str) -> None:
    backbone = make_backbone(family)
    parts = base_parts(backbone)
    assert sorted(parts) == sorted((*FIXED, *ADJUSTABLE, NUMERICS))
    backbone.generate(make_batch(backbone, make_samples((1,), answers=False)).inputs, 2)
    assert base_parts(backbone) == parts == base_parts(make_backbone(family))
    assert json.loads(json.dumps(parts)) == parts
    config = set(parts["model config"]["values"])
    assert not any("dtype" in key or "version" in key for key in config)


@pytest.fixture(scope="module")
def tiny() -> Parts:
    return base_parts(PretrainedBackbone("tiny"))


def edited(tmp_path: Path, name: str, edit: Callable[[Any], None]) -> Parts:
    folder = Path(shutil.copytree(TINY_PATH, tmp_path / "model"))
    content = json.loads((folder / name).read_text())
    edit(content)
    (folder / name).write_text(json.dumps(content))
    return base_parts(PretrainedBackbone(str(folder)))


def swap_words(tokenizer: Any) -> None:
    vocabulary = tokenizer["model"]["vocab"]
    first, second = list(vocabulary)[100:102]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]


@pytest.mark.parametrize(
    ("name", "edit", "changes"),
    [
        ("tokenizer.json", swap_words, {"tokenizer": "another tokenizer"}),
        (
            "tokenizer_config.json",
            lambda config: config.update(pad_to_multiple_of=8),
            {"tokenizer": "another tokenizer: pad_to_multiple_of none -> 8"},
        ),
        (
            "processor_config.json",
            lambda config: config["image_processor"].update(size={"height": 64, "width": 48}),
            {"image processor": "another image processor: size.width 64 -> 48"},
        ),
        (
            "config.json",
            lambda config: config.update(vision_feature_layer=-2),
            {"model config": "another model config: vision_feature_layer -1 -> -2"},
        ),
        (
            "generation_config.json",
            lambda config: config.update(eos_token_id=[2, 1], repetition_penalty=1.2),
            {"generation": "another generation: eos_token_id [2] -> [2, 1]"},
        ),
    ],
)
def test_a_file_that_changed_is_named_by_its_part(
    tiny: Parts, tmp_path: Path, name: str, edit: Callable[[Any], None], changes: dict[str, str]
) -> None:
    assert changed_parts(tiny, edited(tmp_path, name, edit)) == changes


def test_another_template_or_variable_is_another_part(tiny: Parts, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(TINY_PATH, tmp_path / "model"))
    template = folder / "chat_template.jinja"
    template.write_text("{{ strftime_now('%Y') if dated }}" + template.read_text())
    source = str(folder)
    first = base_parts(PretrainedBackbone(source, template_date="2026-01-03"))
    second = base_parts(PretrainedBackbone(source, template_date="2026-01-04"))
    assert changed_parts(tiny, first) == {
        "chat template": "another chat template: date none -> 2026-01-03"
    }
    assert "date 2026-01-03 -> 2026-01-04" in changed_parts(first, second)["chat template"]
    styled = base_parts(PretrainedBackbone("tiny", prompt_style="llava"))
    assert "style none -> llava" in changed_parts(tiny, styled)["chat template"]


def test_settings_of_generation_and_beams_are_a_part(tiny: Parts) -> None:
    backbone = PretrainedBackbone("tiny")
    backbone.set_generation({"repetition_penalty": 1.05})
    assert changed_parts(tiny, base_parts(backbone, beams=3)) == {
        "generation": "another generation: beams 1 -> 3, repetition_penalty none -> 1.05"
    }


def test_another_library_of_images_is_another_backend(
    tiny: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = PretrainedBackbone("tiny")
    monkeypatch.setattr("PIL.features.version", lambda name: "1.0")
    changes = changed_parts(tiny, base_parts(backbone))
    assert list(changes) == ["image backend"]
    assert changes["image backend"].endswith(" -> 1.0")


def part(**values: Any) -> dict[str, Any]:
    return {"sha256": str(sorted(values.items())), "values": values}


def test_settings_that_one_version_of_the_library_lacks_are_not_compared() -> None:
    old = {"model config": part(a=1, b=2), NUMERICS: part(transformers="5.1")}
    new = {"model config": part(a=1, c=3), NUMERICS: part(transformers="5.2")}
    assert list(changed_parts(old, new)) == [NUMERICS]
    new["model config"] = part(a=4, c=3)
    assert changed_parts(old, new)["model config"] == "another model config: a 1 -> 4"
    new[NUMERICS] = part(transformers="5.1")
    assert changed_parts(old, new) == {
        "model config": "another model config: a 1 -> 4, b 2 -> none, c none -> 3"
    }


@pytest.mark.parametrize("saved", [None, {}, [], {"tokenizer": 1}, {"tokenizer": None}])
def test_parts_that_were_not_recorded_are_not_compared(tiny: Parts, saved: Any) -> None:
    assert changed_parts(saved, tiny) == {}


def test_many_and_long_values_are_shortened() -> None:
    old = {"tokenizer": part(a="x" * 99, b=1, c=1, d=1, e=1)}
    text = changed_parts(old, {"tokenizer": part(a="y", b=2, c=2, d=2, e=2)})["tokenizer"]
    assert text == f"another tokenizer: a {'x' * 37}... -> y, b 1 -> 2, c 1 -> 2 and 2 more"


def test_dtype_belongs_to_the_weights_and_is_listed(tiny: Parts) -> None:
    backbone: Backbone = PretrainedBackbone("tiny", dtype="bfloat16")
    assert backbone.fingerprint() != PretrainedBackbone("tiny").fingerprint()
    assert changed_parts(tiny, base_parts(backbone)) == {
        NUMERICS: "another numerics: dtype ['float32'] -> ['bfloat16']"
    }
