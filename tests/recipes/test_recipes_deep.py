"""The deep base model: its tokenizer, its shape and a small pretraining."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from dmole.demo.tiny import TINY_PATH
from dmole.demo.world import synthetic_samples
from dmole.demo.world.needs import NEED_GENERATORS
from dmole.demo.world.questions import ask_all
from dmole.demo.world.scenes import random_scene
from recipes.tiny import architecture, pretraining
from recipes.tiny.architecture import (
    ModelShape,
    build_model,
    initialize,
    project_patches,
    to_pixel_values,
)
from recipes.tiny.bases import BASES, Base, PretrainingSettings
from recipes.tiny.evaluate import BOX_KINDS, answer, main, score, task_cases
from recipes.tiny.packing import Packer, answer_loss
from recipes.tiny.pretrain import LOG, pretrain
from recipes.tiny.pretraining import Pretraining
from recipes.tiny.tokenizer import LOCATION_TOKENS, build_tokenizer
from recipes.tiny.worlds import WIDE_WORLD

SMALL = replace(
    BASES["deep"],
    shape=ModelShape(
        vision_blocks=2,
        vision_width=32,
        vision_heads=2,
        language_blocks=2,
        language_width=32,
        language_heads=2,
        language_hidden=64,
    ),
    settings=PretrainingSettings(eye_steps=2, eye_batch=3, all_steps=3, all_batch=3),
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer(WIDE_WORLD)


def test_every_word_of_the_wide_world_and_its_tasks_is_one_token(tokenizer: Any) -> None:
    for word in (*WIDE_WORLD.names, *WIDE_WORLD.extra_words, *LOCATION_TOKENS):
        assert len(tokenizer.tokenize(word)) == 1, word
    for name in NEED_GENERATORS:
        for sample in synthetic_samples(f"synthetic://{name}/val?size=40"):
            text = sample.references[0]
            assert len(tokenizer.tokenize(text)) == len(text.replace(">", "> ").split()), text
            prompt = tokenizer(sample.prompt, add_special_tokens=False).input_ids
            assert tokenizer.decode(prompt).strip() == sample.prompt.replace(" <", "<")


def test_the_deep_base_has_many_narrow_blocks() -> None:
    shape = BASES["deep"].shape
    model = build_model(830, shape)
    assert 3e6 <= sum(parameter.numel() for parameter in model.parameters()) <= 6e6
    assert shape.vision_blocks >= 8 <= shape.language_blocks


def test_output_projections_shrink_with_the_square_root_of_the_depth() -> None:
    deviations = []
    for depth in (4, 16):
        shape = replace(SMALL.shape, vision_blocks=depth, language_blocks=1)
        model = build_model(100, shape)
        initialize(model, 0, WIDE_WORLD.scene)
        weights = [w for name, w in model.named_parameters() if name.endswith("mlp.fc2.weight")]
        deviations.append(torch.stack(weights).std().item())
    assert deviations[0] / deviations[1] == pytest.approx(2, rel=0.1)


@pytest.fixture
def quick_start(monkeypatch: pytest.MonkeyPatch, tokenizer: Any) -> None:
    monkeypatch.setattr(pretraining, "build_tokenizer", lambda world: tokenizer)
    monkeypatch.setattr(architecture, "WHITENING_SCENES", 20)


def _interrupt(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    train = Pretraining.train_all

    def train_until(run: Pretraining) -> dict[str, float]:
        if run.step == step:
            raise KeyboardInterrupt
        return train(run)

    monkeypatch.setattr(Pretraining, "train_all", train_until)


@pytest.mark.usefixtures("quick_start")
def test_a_killed_pretraining_resumes_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = pretrain(SMALL, tmp_path / "straight", report_every=1)
    with monkeypatch.context() as patch:
        _interrupt(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            pretrain(SMALL, tmp_path / "killed", report_every=1)
    resumed = pretrain(SMALL, tmp_path / "killed", report_every=1)
    assert straight is not None
    assert resumed is not None
    first, second = (load_file(path / "model.safetensors") for path in (straight, resumed))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
    logs = [
        [json.loads(line) for line in (folder / LOG).read_text().splitlines()]
        for folder in (tmp_path / "straight", tmp_path / "killed")
    ]
    for rows in logs:
        assert [(row["stage"], row["step"]) for row in rows] == [
            ("eye", 1), ("eye", 2), ("all", 1), ("all", 2), ("all", 3)
        ]  # fmt: skip
    without_time = [[{**row, "cpu_seconds": 0} for row in rows] for rows in logs]
    assert without_time[0] == without_time[1]
    assert any(key.startswith("exact/") for key in logs[0][-1])


@pytest.mark.usefixtures("quick_start")
def test_a_checkpoint_of_another_base_is_refused(tmp_path: Path) -> None:
    one_step = replace(SMALL, settings=replace(SMALL.settings, eye_steps=1, all_steps=0))
    pretrain(one_step, tmp_path)
    other: Base = replace(one_step, shape=replace(SMALL.shape, vision_blocks=3))
    with pytest.raises(ValueError, match="was made with other settings"):
        pretrain(other, tmp_path)


def test_exact_shares_are_those_of_greedy_generation() -> None:
    processor = AutoProcessor.from_pretrained(TINY_PATH)
    model = AutoModelForImageTextToText.from_pretrained(TINY_PATH, dtype=torch.float32).eval()
    rng = random.Random(3)
    scenes = [random_scene(rng) for _ in range(12)]
    questions = [rng.choice(ask_all(rng, scene)) for scene in scenes]
    # three of four pictures do not fit their questions, so that some answers are wrong
    shown = [scene if index % 4 == 0 else scenes[0] for index, scene in enumerate(scenes)]
    said = answer(
        model, processor, [(s.pixels, q.text) for s, q in zip(shown, questions, strict=True)]
    )
    right = [text == question.answer for text, question in zip(said, questions, strict=True)]
    assert {*right} == {True, False}
    packer = Packer(processor.tokenizer, ())
    for scene, question, is_right in zip(shown, questions, right, strict=True):
        with torch.no_grad():
            patches = project_patches(model, to_pixel_values([scene.pixels]))
            result = answer_loss(model, patches, packer.pack([[packer.block(question)]]))
        assert result.exact == {question.kind: float(is_right)}


def test_boxes_of_a_task_are_scored_by_overlap_too() -> None:
    cases = task_cases("need_language_box", 2)
    assert cases[0].question.kind in BOX_KINDS
    figures = score(cases, [cases[0].question.answer, "left"])
    assert figures == {"exact": 50.0, "iou": 50.0, "iou_at_50": 50.0}


def test_the_deep_base_is_measured_from_a_folder_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--base", "deep"])
    assert "--model is required: the deep base model is not shipped" in capsys.readouterr().err
