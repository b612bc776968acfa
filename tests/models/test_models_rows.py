"""The image, tile or patch of each row of the vision encoder."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import MODEL_FAMILIES, make_backbone, make_batch, make_samples

from dmole.models.rows import rows_per_sample

COUNTS = torch.tensor([2, 0, 1])


def config(family: str) -> SimpleNamespace:
    return SimpleNamespace(model_type=family)


@pytest.mark.parametrize("family", MODEL_FAMILIES)
@pytest.mark.parametrize("images", [(1, 0, 2, 1), (0, 1), (1, 1), (3,), (2, 2, 0)])
def test_rows_add_up_to_what_the_vision_encoder_sees(family: str, images: tuple[Any, ...]) -> None:
    backbone = make_backbone(family)
    batch = make_batch(backbone, make_samples(images))
    rows = backbone.vision_rows(batch.inputs, batch.image_counts)
    seen = []
    path = backbone.blocks[0].linears[0]
    backbone.model.get_submodule(path).register_forward_pre_hook(
        lambda _, args: seen.append(args[0].shape[0])
    )
    with torch.no_grad():
        backbone.model(**batch.inputs)
    assert seen == [int(rows.sum())]
    assert rows.dtype == torch.long
    for i, sample in enumerate(make_samples(images)):  # as many as the sample has alone
        alone = make_batch(backbone, [sample])
        assert rows[i] == backbone.vision_rows(alone.inputs, alone.image_counts)[0]
        assert (rows[i] > 0) == (len(sample.images) > 0)


@pytest.mark.parametrize("family", MODEL_FAMILIES)
def test_a_batch_without_images_has_no_rows(family: str) -> None:
    backbone = make_backbone(family)
    batch = make_batch(backbone, make_samples((0, 0)))
    assert backbone.vision_rows(batch.inputs, batch.image_counts).tolist() == [0, 0]


def test_packed_patches_belong_to_the_sample_of_their_image() -> None:
    inputs = {
        "pixel_values": torch.zeros(4 + 6 + 8, 12),
        "image_grid_thw": torch.tensor([[1, 2, 2], [1, 2, 3], [1, 2, 4]]),
    }
    assert rows_per_sample(config("qwen2_vl"), inputs, COUNTS).tolist() == [10, 0, 8]


def test_one_row_an_image_is_the_rule() -> None:
    inputs = {"pixel_values": torch.zeros(3, 3, 8, 8)}
    assert rows_per_sample(config("llava"), inputs, COUNTS).tolist() == [2, 0, 1]


def test_padded_tiles_are_not_counted() -> None:
    pixels = torch.zeros(3, 4, 3, 2, 2)
    pixels[0, :3] = 1.0
    pixels[2, :1] = -1.0
    counts = rows_per_sample(config("idefics3"), {"pixel_values": pixels}, COUNTS)
    assert counts.tolist() == [3, 0, 1]


def test_an_unknown_layout_is_refused() -> None:
    inputs = {"pixel_values": torch.zeros(7, 3, 8, 8)}
    with pytest.raises(ValueError, match="which of the 7 vision rows of a new_family model"):
        rows_per_sample(config("new_family"), inputs, COUNTS)


def test_an_unknown_family_is_accepted_only_where_its_layout_is_unambiguous() -> None:
    grid = torch.tensor([[1, 2, 2], [1, 2, 3], [1, 2, 4]])
    packed = {"pixel_values": torch.zeros(18, 12), "image_grid_thw": grid}
    assert rows_per_sample(config("new_family"), packed, COUNTS).tolist() == [10, 0, 8]
    images = {"pixel_values": torch.zeros(3, 3, 8, 8)}
    assert rows_per_sample(config("new_family"), images, COUNTS).tolist() == [2, 0, 1]
    tiles = {"pixel_values": torch.ones(3, 5, 3, 8, 8)}  # three samples, or three images?
    with pytest.raises(ValueError, match="which of the 3 vision rows of a new_family model"):
        rows_per_sample(config("new_family"), tiles, COUNTS)


def test_onevision_cuts_only_images_that_are_alone() -> None:
    grids = SimpleNamespace(
        model_type="llava_onevision",
        image_grid_pinpoints=[[16, 32]],
        vision_config=SimpleNamespace(image_size=16),
    )
    inputs = {
        "pixel_values": torch.zeros(3, 3, 3, 16, 16),
        "image_sizes": torch.tensor([[20, 30]] * 3),
    }
    assert rows_per_sample(grids, inputs, COUNTS).tolist() == [2, 0, 3]


def test_tiles_are_counted_by_the_image_tokens_they_become() -> None:
    tiles = SimpleNamespace(model_type="internvl", image_token_id=7, image_seq_length=2)
    ids = torch.tensor([[7] * 4 + [1] * 4, [1] * 8, [0, 0, 7, 7, 1, 7, 7, 1]])
    inputs = {"pixel_values": torch.zeros(4, 3, 8, 8), "input_ids": ids}
    assert rows_per_sample(tiles, inputs, COUNTS).tolist() == [2, 0, 2]


def test_blank_tiles_alone_leave_the_one_that_the_model_keeps() -> None:
    inputs = {"pixel_values": torch.zeros(2, 3, 3, 2, 2)}
    assert rows_per_sample(config("idefics3"), inputs, torch.tensor([1, 1])).tolist() == [1, 0]


def test_mllama_samples_with_unlike_numbers_of_images_are_refused() -> None:
    inputs = {"pixel_values": torch.zeros(3, 2, 4, 3, 8, 8)}
    assert rows_per_sample(config("mllama"), inputs, torch.tensor([2, 0, 2])).tolist() == [2, 2, 2]
    with pytest.raises(ValueError, match="mllama batch holds samples with 1 and 2 images"):
        rows_per_sample(config("mllama"), inputs, COUNTS)


def test_mllama_rows_are_there_once_for_each_beam() -> None:
    backbone = make_backbone("mllama")
    inputs = {"pixel_values": torch.zeros(2, 1, 2, 3, 16, 16)}
    counts = torch.tensor([1, 0])
    assert backbone.vision_rows(inputs, counts, beams=3).tolist() == [3, 3]
    llava = make_backbone("llava")
    images = {"pixel_values": torch.zeros(1, 3, 16, 16)}
    assert llava.vision_rows(images, counts, beams=3).tolist() == [1, 0]
