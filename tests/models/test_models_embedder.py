"""What the router sees of a sample: the same in any batch, precision and mode."""

from __future__ import annotations

from collections.abc import Sequence
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
from torch.testing import assert_close

from dmole.data.sample import Sample
from dmole.experts import ExpertLibrary, Gates
from dmole.models import Backbone, Embedder
from dmole.models.embedder import sample_keys

IMAGES = (1, 0, 2, 1)


@pytest.fixture(scope="module", params=MODEL_FAMILIES)
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return make_backbone(request.param)


def embed(backbone: Backbone, samples: Sequence[Sample]) -> torch.Tensor:
    return Embedder(backbone)(make_batch(backbone, samples))


def test_an_embedding_is_the_maximum_over_the_images_beside_that_over_the_question(
    backbone: Backbone,
) -> None:
    samples = make_samples(IMAGES)
    found = embed(backbone, samples)
    assert found.shape == (4, 2 * WIDTH)
    for i, sample in enumerate(samples):
        batch = make_batch(backbone, [sample])
        text = backbone.text_hidden(**batch.question)[0].amax(dim=0)
        assert_close(found[i, WIDTH:], text, rtol=1e-4, atol=1e-4)
        if sample.images:
            hidden = backbone.vision_hidden(batch.inputs)
            assert_close(found[i, :WIDTH], hidden.flatten(0, -2).amax(0), rtol=1e-4, atol=1e-4)
        else:
            assert not found[i, :WIDTH].any()


def test_an_embedding_depends_on_no_batch_mate_and_no_padding(backbone: Backbone) -> None:
    samples = make_samples(IMAGES)
    together = embed(backbone, samples)
    for i, sample in enumerate(samples):
        assert_close(together[i : i + 1], embed(backbone, [sample]), rtol=1e-4, atol=1e-4)
    order = [2, 0, 3, 1]
    mixed = embed(backbone, [samples[i] for i in order])
    assert_close(mixed, together[order], rtol=1e-4, atol=1e-4)


def test_a_prompt_and_its_training_sample_have_the_same_embedding(backbone: Backbone) -> None:
    trained, tested = make_samples((1, 0)), make_samples((1, 0), answers=False)
    assert_close(embed(backbone, trained), embed(backbone, tested), rtol=1e-4, atol=1e-4)


def test_images_and_questions_both_tell_samples_apart(backbone: Backbone) -> None:
    found = embed(backbone, make_samples((1, 1, 1)))
    for half in (found[:, :WIDTH], found[:, WIDTH:]):
        assert (half[0] - half[1]).abs().max() > 1e-2


def test_embeddings_are_float32_without_gradient_under_autocast(backbone: Backbone) -> None:
    samples = make_samples(IMAGES)
    plain = embed(backbone, samples)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = embed(backbone, samples)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert torch.equal(found, plain)


def test_embedding_leaves_modes_and_flags_as_they_were(backbone: Backbone) -> None:
    backbone.model.train()
    child = next(m for m in backbone.model.modules() if not list(m.children()))
    child.eval()
    modes = [m.training for m in backbone.model.modules()]
    plain = embed(backbone, make_samples(IMAGES))
    assert [m.training for m in backbone.model.modules()] == modes
    backbone.model.eval()
    assert torch.equal(plain, embed(backbone, make_samples(IMAGES)))


class Counting:
    """Counts the passes of the language model, and the questions in them."""

    def __init__(self, backbone: Backbone) -> None:
        self.count = self.rows = 0
        module = backbone.model.get_submodule(backbone.parts.language)
        self.handle = module.register_forward_pre_hook(self._hit, with_kwargs=True)

    def _hit(self, module: Any, args: Any, kwargs: dict[str, torch.Tensor]) -> None:
        self.count += 1
        self.rows += len(kwargs["input_ids"])


def test_each_sample_is_embedded_once(backbone: Backbone) -> None:
    batch, embedder = make_batch(backbone, make_samples(IMAGES)), Embedder(backbone)
    counting = Counting(backbone)
    first = embedder(batch)
    again = embedder(batch)
    counting.handle.remove()
    assert torch.equal(first, again)
    assert counting.count == 1
    assert len(embedder.cache) == 4


@pytest.mark.parametrize("remember", [True, False])
def test_only_the_missing_samples_of_a_batch_are_embedded(
    backbone: Backbone, remember: bool
) -> None:
    samples = make_samples(IMAGES)
    together = embed(backbone, samples)
    for known in ([0, 1], [2], [1, 3]):
        embedder = Embedder(backbone)
        embedder(make_batch(backbone, [samples[i] for i in known]))
        counting = Counting(backbone)
        repeated = [*samples, samples[0]]  # a sample that fills the batch
        found = embedder(make_batch(backbone, repeated), remember=remember)
        counting.handle.remove()
        assert counting.rows == 4 - len(known)
        assert_close(found, together[[0, 1, 2, 3, 0]], rtol=1e-4, atol=1e-4)
        assert torch.equal(found[0], found[4])
        assert len(embedder.cache) == (4 if remember else len(known))


def test_a_batch_of_questions_alone_has_vision_zeros(backbone: Backbone) -> None:
    found = embed(backbone, make_samples((0, 0)))
    assert not found[:, :WIDTH].any()
    assert found[:, WIDTH:].any()


def test_without_gates_experts_do_not_change_an_embedding(backbone: Backbone) -> None:
    samples = make_samples(IMAGES)
    plain = embed(backbone, samples)
    library = ExpertLibrary(backbone.model, lambda _: "language")
    paths = all_linears(backbone)
    library.add("a", dict.fromkeys(paths, 2), dict.fromkeys(paths, 4.0))
    randomize(library, "a")
    assert torch.equal(embed(backbone, samples), plain)
    with library.context.use(Gates(["a"], torch.ones(4, 1))):
        assert not torch.equal(embed(backbone, samples), plain)
    library.remove("a")


def test_samples_of_other_tasks_and_splits_have_other_keys() -> None:
    backbone = make_backbone("llava")
    train = make_batch(backbone, make_samples((1, 0)))
    test = make_batch(backbone, make_samples((1, 0), answers=False), task="shapes")
    assert sample_keys(train) == ["colors/train/s0", "colors/train/s1"]
    assert sample_keys(test) == ["shapes/test/s0", "shapes/test/s1"]
