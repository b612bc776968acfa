"""The base model's surface: loss, answers, weights and what experts do not change of it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import (
    MODEL_FAMILIES,
    WIDTH,
    all_linears,
    make_backbone,
    make_batch,
    make_samples,
    randomize,
)
from torch import nn
from torch.testing import assert_close

from dmole.data.batch import Batch
from dmole.experts import ExpertLibrary
from dmole.models import Backbone, Embedder, PretrainedBackbone


@pytest.fixture(scope="module", params=MODEL_FAMILIES)
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return make_backbone(request.param)


def test_the_base_model_is_frozen_and_in_evaluation_mode(backbone: Backbone) -> None:
    assert not any(p.requires_grad for p in backbone.parameters())
    assert not any(m.training for m in backbone.model.modules())


def test_the_loss_is_the_mean_cross_entropy_of_the_answer_tokens(backbone: Backbone) -> None:
    batch = make_batch(backbone, make_samples((1, 0, 2)))
    with torch.no_grad():
        logits = backbone.model(**batch.inputs, use_cache=False).logits
        found = backbone.loss(batch.inputs, batch.labels)
    expected = nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten()
    )
    assert_close(found, expected)


def test_the_loss_does_not_depend_on_padding(backbone: Backbone) -> None:
    samples = make_samples((1, 0, 2))
    with torch.no_grad():
        batch = make_batch(backbone, samples)
        together = backbone.loss(batch.inputs, batch.labels)
        total, count = 0.0, 0
        for sample in samples:
            alone = make_batch(backbone, [sample])
            tokens = int((alone.labels != -100).sum())
            total += float(backbone.loss(alone.inputs, alone.labels)) * tokens
            count += tokens
    assert float(together) == pytest.approx(total / count, rel=1e-4)


@pytest.mark.parametrize("beams", [1, 3])
def test_answers_are_texts_that_repeat_and_do_not_depend_on_batch_mates(
    backbone: Backbone, beams: int
) -> None:
    samples = make_samples((1, 0, 2), answers=False)
    batch = make_batch(backbone, samples)
    texts = backbone.generate(batch.inputs, 5, beams)
    assert texts == backbone.generate(batch.inputs, 5, beams)
    assert all(text == text.strip() for text in texts)
    for i, sample in enumerate(samples):
        alone = make_batch(backbone, [sample])
        assert backbone.generate(alone.inputs, 5, beams) == [texts[i]]


def test_another_image_changes_the_logits(backbone: Backbone) -> None:
    """Families that are blind to images at random initialization would test nothing."""
    batch = make_batch(backbone, make_samples((1,)))
    with torch.no_grad():
        first = backbone.model(**batch.inputs).logits
        batch.inputs["pixel_values"] = batch.inputs["pixel_values"].flip(-1)
        assert (backbone.model(**batch.inputs).logits - first).abs().max() > 1e-2


def test_hidden_states_have_the_widths_of_their_modalities(backbone: Backbone) -> None:
    batch = make_batch(backbone, make_samples((1, 0, 2)))
    rows = int(backbone.vision_rows(batch.inputs, batch.image_counts).sum())
    hidden = backbone.vision_hidden(batch.inputs)
    assert hidden.shape[0] == rows
    assert hidden.shape[-1] == backbone.vision_width == WIDTH
    assert backbone.text_hidden(**batch.question).shape == (
        *batch.question["input_ids"].shape,
        WIDTH,
    )


def test_experts_change_neither_fingerprint_nor_counts_nor_shapes_nor_base_parameters() -> None:
    backbone = make_backbone("llava")

    def facts() -> tuple[Any, ...]:
        path = all_linears(backbone)[0]
        return (
            backbone.fingerprint(),
            backbone.parameter_count(),
            backbone.linear_shapes(),
            [id(source) for source in backbone.gradient_sources(path)],
        )

    before = facts()
    assert before[1] == sum(p.numel() for p in backbone.model.parameters())
    library = ExpertLibrary(backbone.model, lambda _: "language")
    paths = all_linears(backbone)
    library.add("a", dict.fromkeys(paths, 2), dict.fromkeys(paths, 4.0))
    randomize(library, "a")
    assert facts() == before
    backbone.model.get_submodule(paths[0]).base.weight.data[0, 0] += 1e-3
    assert backbone.fingerprint() != before[0]


def test_a_linear_is_scored_by_its_weight_and_bias() -> None:
    backbone = make_backbone("llava")
    vision, language = backbone.blocks[0].linears[0], backbone.blocks[-1].linears[0]
    assert [p.ndim for p in backbone.gradient_sources(vision)] == [2, 1]
    assert [p.ndim for p in backbone.gradient_sources(language)] == [2]


def test_a_fingerprint_reads_every_dtype_and_scalars() -> None:
    model = nn.Module()
    model.config = SimpleNamespace()
    model.vision_tower = nn.ModuleList([nn.Linear(2, 2).bfloat16()])
    model.language_model = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(2, 2)])})
    model.vision_tower = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(2, 2).bfloat16()])})
    model.scale = nn.Parameter(torch.tensor(1.0))
    backbone = Backbone(model, None)
    before = backbone.fingerprint()
    model.scale.data += 1
    assert backbone.fingerprint() != before


def make_qwen() -> nn.Module:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    text = {
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 50,
        "rope_parameters": rope,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    vision = {
        "depth": 2,
        "embed_dim": 24,
        "hidden_size": WIDTH,
        "num_heads": 2,
        "mlp_ratio": 2,
        "patch_size": 4,
    }
    ids = {"image_token_id": 5, "vision_start_token_id": 6, "video_token_id": 7}
    config = Qwen2VLConfig(text_config=text, vision_config=vision, **ids)
    return Backbone(Qwen2VLForConditionalGeneration(config), None)


def test_packed_patches_are_pooled_by_sample() -> None:
    backbone = make_qwen()
    grid = torch.tensor([[1, 4, 4], [1, 4, 6], [1, 2, 2]])
    inputs = {"pixel_values": torch.randn(16 + 24 + 4, 96), "image_grid_thw": grid}
    question = {"input_ids": torch.tensor([[8, 9]] * 3), "attention_mask": torch.ones(3, 2).long()}
    counts = torch.tensor([1, 0, 2])
    batch = Batch(inputs, None, question, counts, ["a", "b", "c"], ["t"] * 3)
    found = Embedder(backbone)(batch)
    hidden = backbone.vision_hidden(inputs)
    assert found.shape == (3, 24 + WIDTH)
    assert_close(found[0, :24], hidden[:16].amax(0))
    assert not found[1, :24].any()
    assert_close(found[2, :24], hidden[16:].amax(0))


def test_the_shipped_model_loads_by_its_short_name() -> None:
    backbone = PretrainedBackbone("tiny")
    assert {block.modality for block in backbone.blocks} >= {"vision", "language"}
    assert backbone.name_or_path.endswith("weights")
    assert next(backbone.parameters()).dtype == torch.float32


def test_a_model_that_is_not_there_is_named_in_one_line() -> None:
    with pytest.raises(ValueError, match="cannot load the base model '/nowhere/at/all'") as caught:
        PretrainedBackbone("/nowhere/at/all")
    assert "\n" not in str(caught.value)


def test_code_of_a_model_runs_only_on_request_and_logs_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    requests = []
    for kind in ("AutoConfig", "AutoProcessor", "AutoModelForImageTextToText"):
        monkeypatch.setattr(f"transformers.{kind}.from_pretrained", refuse_to_load(requests))
    # the command line gives the log a handler of its own; what is caught comes from the root
    monkeypatch.setattr(logging.getLogger("dmole"), "handlers", [])
    monkeypatch.setattr(logging.getLogger("dmole"), "propagate", True)
    with caplog.at_level("INFO", logger="dmole"):
        for options in ({}, {"trust_remote_code": True}):
            with pytest.raises(ValueError, match="cannot load the base model 'a/b'"):
                PretrainedBackbone("a/b", **options)
    assert requests == [False, True]
    # pytest itself captures a logger twice that once did not propagate
    said = {record.getMessage() for record in caplog.records}
    assert said == {"trust_remote_code is on: code of a/b runs on this machine"}


def refuse_to_load(requests: list[bool]) -> Callable[..., None]:
    def load(source: str, trust_remote_code: bool, **options: Any) -> None:
        requests.append(trust_remote_code)
        raise OSError("not here")

    return load
