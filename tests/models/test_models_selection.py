"""Samples selected from the inputs of a batch, whose image tensors differ by family."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from families import MODEL_FAMILIES, make_backbone, make_batch, make_samples

from dmole.models.selection import select_samples


@pytest.mark.parametrize("family", MODEL_FAMILIES)
@pytest.mark.parametrize("chosen", [[0], [1], [1, 2], [0, 3], [0, 1, 2, 3]])
def test_selected_samples_have_the_images_that_they_have_alone(
    family: str, chosen: list[int]
) -> None:
    backbone, samples = make_backbone(family), make_samples((1, 0, 2, 1))
    batch = make_batch(backbone, samples)
    config = backbone.model.config
    found = select_samples(config, batch.inputs, batch.image_counts, chosen)
    alone = make_batch(backbone, [samples[i] for i in chosen])
    assert found.keys() == alone.inputs.keys()
    assert len(found["input_ids"]) == len(chosen)
    if "pixel_values" in found:
        rows = [backbone.vision_hidden(inputs) for inputs in (found, alone.inputs)]
        assert torch.equal(*rows)


def test_entries_of_unknown_owners_are_refused() -> None:
    inputs = {
        "input_ids": torch.ones(2, 5),
        "pixel_values": torch.ones(2, 3, 4, 4),
        "image_masks": torch.ones(7),
    }
    config = SimpleNamespace(model_type="llava")
    with pytest.raises(ValueError, match="7 entries of image_masks of a llava model"):
        select_samples(config, inputs, torch.tensor([1, 1]), [0])
