"""The shipped tiny model, its processor and the script that makes it."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin

from dmole.demo.tiny import TINY_PATH
from dmole.demo.world.questions import ask_all
from dmole.demo.world.scenes import random_scene
from dmole.demo.world.world import CLASSES, COLOR_NAMES
from recipes.tiny import architecture, pretraining
from recipes.tiny.architecture import PATCHES, project_patches, to_pixel_values
from recipes.tiny.bases import BASES, PretrainingSettings
from recipes.tiny.evaluate import answer, fresh_cases, score
from recipes.tiny.muon import Muon, orthogonalize
from recipes.tiny.packing import Packer, answer_loss
from recipes.tiny.pretrain import main, pretrain
from recipes.tiny.tokenizer import (
    ASSISTANT,
    BOS,
    EOS,
    IMAGE,
    LOCATION_TOKENS,
    USER,
    build_tokenizer,
)
from recipes.tiny.worlds import EXTRA_WORDS, SMALL_WORLD

SMALL = replace(
    BASES["tiny"],
    settings=PretrainingSettings(eye_steps=1, eye_batch=3, all_steps=2, all_batch=3),
)


@pytest.fixture(scope="module")
def processor() -> ProcessorMixin:
    return AutoProcessor.from_pretrained(TINY_PATH)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return AutoModelForImageTextToText.from_pretrained(TINY_PATH, dtype=torch.float32).eval()


def _ids(processor: ProcessorMixin, text: str) -> list[int]:
    return processor.tokenizer(text, add_special_tokens=False).input_ids


def test_the_shipped_files_weigh_at_most_ten_megabytes() -> None:
    assert sum(file.stat().st_size for file in TINY_PATH.iterdir()) <= 10e6


def test_every_word_of_the_world_is_one_token(processor: ProcessorMixin) -> None:
    for word in (*COLOR_NAMES, *CLASSES, *EXTRA_WORDS, *LOCATION_TOKENS):
        assert len(_ids(processor, word)) == 1, word


def test_the_tokenizer_script_makes_the_shipped_tokenizer(processor: ProcessorMixin) -> None:
    assert build_tokenizer(SMALL_WORLD).get_vocab() == processor.tokenizer.get_vocab()


def test_the_chat_template_and_processor_give_the_training_format(
    processor: ProcessorMixin,
) -> None:
    scene = random_scene(random.Random(0))
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "what is at <x3><y4> ?"},
                                     {"type": "image"}]},
        {"role": "assistant", "content": "a red star"},
    ]  # fmt: skip
    text = processor.apply_chat_template(messages)
    batch = processor(images=[Image.fromarray(scene.pixels)], text=[text], return_tensors="pt")
    question, said = _ids(processor, "what is at <x3><y4> ?"), _ids(processor, "a red star")
    expected = [BOS, *[IMAGE] * PATCHES, USER, *question, ASSISTANT, *said, EOS]
    assert batch["input_ids"][0].tolist() == expected
    torch.testing.assert_close(batch["pixel_values"], to_pixel_values([scene.pixels]))


def test_the_chat_template_takes_plain_text_and_several_turns(processor: ProcessorMixin) -> None:
    messages = [
        {"role": "user", "content": "<image>\ncount the shapes"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "list the shapes"},
    ]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert text == (
        "<s><image>USER:count the shapesASSISTANT:two</s>USER:list the shapesASSISTANT:"
    )


def test_the_chat_template_refuses_other_roles(processor: ProcessorMixin) -> None:
    with pytest.raises(Exception, match="got system"):
        processor.apply_chat_template([{"role": "system", "content": "be kind"}])


def test_a_question_without_picture_runs_through_the_language_model(
    processor: ProcessorMixin, model: PreTrainedModel
) -> None:
    batch = processor.tokenizer(["what color is the star ?"], return_tensors="pt")
    hidden = model.model.language_model(**batch).last_hidden_state
    assert hidden.shape == (1, 6, 160)


def test_a_packed_question_has_the_loss_of_the_question_alone(
    processor: ProcessorMixin, model: PreTrainedModel
) -> None:
    rng = random.Random(5)
    scene = random_scene(rng)
    packer = Packer(processor.tokenizer, EXTRA_WORDS)
    blocks = [packer.block(question) for question in ask_all(rng, scene)[:3]]
    with torch.no_grad():
        patches = project_patches(model, to_pixel_values([scene.pixels]))
        alone = [answer_loss(model, patches, packer.pack([[block]])).loss for block in blocks]
        weights = torch.tensor([packer.pack([[block]]).weights.sum() for block in blocks])
        together = answer_loss(model, patches, packer.pack([blocks])).loss
    expected = (torch.stack(alone) * weights).sum() / weights.sum()
    torch.testing.assert_close(together, expected, rtol=1e-4, atol=1e-5)


def test_the_shipped_model_answers_color_questions_about_fresh_scenes(
    processor: ProcessorMixin, model: PreTrainedModel
) -> None:
    cases = fresh_cases(40, 1, ["color"], SMALL_WORLD)["color"]
    answers = answer(model, processor, [(case.pixels, case.question.text) for case in cases])
    assert score(cases, answers)["exact"] >= 90


def test_boxes_are_scored_by_overlap_too() -> None:
    cases = fresh_cases(2, 1, ["box"], SMALL_WORLD)["box"]
    assert score(cases, [cases[0].question.answer, "left"]) == {
        "exact": 50.0,
        "iou": 50.0,
        "iou_at_50": 50.0,
    }


def test_orthogonalized_matrices_have_singular_values_near_one() -> None:
    values = torch.linalg.svdvals(orthogonalize(torch.randn(2, 6, 4)))
    assert ((values > 0.6) & (values < 1.3)).all()


def test_muon_takes_no_closure() -> None:
    optimizer = Muon([torch.nn.Parameter(torch.ones(2, 2))])
    with pytest.raises(ValueError, match="no closure"):
        optimizer.step(lambda: None)


@pytest.fixture
def quick_start(monkeypatch: pytest.MonkeyPatch, processor: ProcessorMixin) -> None:
    monkeypatch.setattr(pretraining, "build_tokenizer", lambda world: processor.tokenizer)
    monkeypatch.setattr(architecture, "WHITENING_SCENES", 20)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_start")
def test_pretraining_resumes_to_the_same_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    straight = pretrain(SMALL, tmp_path / "straight", report_every=1)
    assert pretrain(SMALL, tmp_path / "broken", stop_after=2) is None
    resumed = pretrain(SMALL, tmp_path / "broken")
    assert "all step 2 cpu" in capsys.readouterr().out
    first, second = (load_file(path / "model.safetensors") for path in (straight, resumed))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
    with pytest.raises(ValueError, match="was made with other settings"):
        pretrain(replace(SMALL, settings=replace(SMALL.settings, seed=1)), tmp_path / "broken")


@pytest.mark.usefixtures("quick_start")
def test_the_command_makes_a_model_that_transformers_loads(tmp_path: Path) -> None:
    options = ["--eye-steps=1", "--eye-batch=2", "--all-steps=1", "--all-batch=2", "--seed=4"]
    main(["--output", str(tmp_path), *options])
    made = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    assert made.dtype == torch.float16
    assert (
        len(AutoProcessor.from_pretrained(tmp_path / "model").tokenizer)
        == made.config.text_config.vocab_size
    )
