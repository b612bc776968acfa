"""Whose image, tile or patch each row of the vision tower is."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from families import MODEL_FAMILIES, make_backbone, make_batch, make_samples

from dmole.models.rows import rows_per_sample

COUNTS = torch.tensor([2, 0, 1])


def config(family):
    return SimpleNamespace(model_type=family)


@pytest.mark.parametrize("family", MODEL_FAMILIES)
@pytest.mark.parametrize("images", [(1, 0, 2, 1), (0, 1), (1, 1), (3,), (2, 2, 0)])
def test_rows_add_up_to_what_the_vision_tower_sees(family, images):
    backbone = make_backbone(family)
    batch = make_batch(backbone, make_samples(images))
    rows = backbone.vision_rows(batch.inputs, batch.image_counts)
    seen = []
    path = backbone.layers[0].linears[0]
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
def test_a_batch_without_images_has_no_rows(family):
    backbone = make_backbone(family)
    batch = make_batch(backbone, make_samples((0, 0)))
    assert backbone.vision_rows(batch.inputs, batch.image_counts).tolist() == [0, 0]


def test_packed_patches_belong_to_the_sample_of_their_image():
    inputs = {
        "pixel_values": torch.zeros(4 + 6 + 8, 12),
        "image_grid_thw": torch.tensor([[1, 2, 2], [1, 2, 3], [1, 2, 4]]),
    }
    assert rows_per_sample(config("qwen2_vl"), inputs, COUNTS).tolist() == [10, 0, 8]


def test_one_row_an_image_is_the_rule():
    inputs = {"pixel_values": torch.zeros(3, 3, 8, 8)}
    assert rows_per_sample(config("llava"), inputs, COUNTS).tolist() == [2, 0, 1]


def test_padded_tiles_are_not_counted():
    pixels = torch.zeros(3, 4, 3, 2, 2)
    pixels[0, :3] = 1.0
    pixels[2, :1] = -1.0
    counts = rows_per_sample(config("idefics3"), {"pixel_values": pixels}, COUNTS)
    assert counts.tolist() == [3, 0, 1]


def test_a_layout_nobody_knows_is_refused():
    inputs = {"pixel_values": torch.zeros(7, 3, 8, 8)}
    with pytest.raises(ValueError, match="which of the 7 vision rows of a new_family model"):
        rows_per_sample(config("new_family"), inputs, COUNTS)
