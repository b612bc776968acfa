"""What single families need beyond the contract of all."""

from __future__ import annotations

import families.models as tiny
import pytest
import torch
from families import MLLAMA_TAKES_TEXT, WIDTH, make_backbone, make_batch, make_samples
from torch.testing import assert_close

from dmole.models import Backbone, Embedder

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
mixed_mllama = pytest.mark.skipif(
    not MLLAMA_TAKES_TEXT, reason="transformers < 5.23: no mllama batch with and without images"
)


@pytest.fixture(scope="module")
def mllama() -> Backbone:
    return make_backbone("mllama")


def test_paligemma_2_reads_questions_as_paligemma_does(monkeypatch: pytest.MonkeyPatch) -> None:
    gemma2 = {"model_type": "gemma2", "head_dim": 16, "query_pre_attn_scalar": 16}
    monkeypatch.setitem(tiny._LANGUAGE, "paligemma", gemma2)
    backbone = make_backbone("paligemma")
    assert type(backbone.model.model.language_model).__name__ == "Gemma2Model"
    samples = make_samples((1, 2))
    together = Embedder(backbone)(make_batch(backbone, samples))
    for row, sample in enumerate(samples):
        assert_close(together[row], Embedder(backbone)(make_batch(backbone, [sample]))[0], **CLOSE)


def test_a_paligemma_question_is_read_in_both_directions() -> None:
    backbone = make_backbone("paligemma")
    question = make_batch(backbone, make_samples((1,))).question
    first = backbone.text_hidden(**question)
    question["input_ids"][0, -1] += 1
    assert (backbone.text_hidden(**question)[0, 0] - first[0, 0]).abs().max() > 1e-3


@mixed_mllama
def test_padding_tiles_and_images_are_no_part_of_an_mllama_embedding(mllama: Backbone) -> None:
    batch = make_batch(mllama, make_samples((2, 0, 2)))
    inputs = batch.inputs
    hidden = mllama.vision_hidden(inputs)
    tiles, tokens = inputs["pixel_values"].shape[2], 5  # four patches and the class token
    assert hidden.shape == (6, tiles * tokens, mllama.vision_width)
    assert mllama.vision_width == 2 * WIDTH
    hidden = hidden.unflatten(1, (tiles, tokens))
    real = inputs["aspect_ratio_mask"].flatten(0, 1).bool()
    real &= (inputs["aspect_ratio_ids"].flatten() > 0)[:, None]
    assert real.any()
    assert not real[2:4].any()  # the sample without images
    assert torch.isfinite(hidden[real]).all()
    assert torch.isinf(hidden[~real]).all()


@mixed_mllama
def test_mllama_text_beside_images_skips_cross_attention_as_it_does_alone(mllama: Backbone) -> None:
    samples = make_samples((2, 0, 2))
    batch = make_batch(mllama, samples)
    alone = make_batch(mllama, samples[1:2])
    assert "pixel_values" not in alone.inputs
    with torch.no_grad():
        beside = mllama.model(**batch.inputs).logits[1]
        expected = mllama.model(**alone.inputs).logits[0]
    assert_close(beside[: len(expected)], expected, **CLOSE)
