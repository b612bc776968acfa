"""Loss and gradients from the answer tokens alone are those from the logits of all positions."""

from __future__ import annotations

from typing import Any

import families.models as tiny
import pytest
import torch
from families import (
    FAMILIES,
    MLLAMA_IMAGES,
    all_linears,
    make_backbone,
    make_batch,
    make_samples,
    randomize,
)
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from dmole.data.batch import Batch
from dmole.data.labels import Targets
from dmole.experts import ExpertLibrary, Gates
from dmole.models.answer_head import answer_output

SOFT_CAP = {
    "model_type": "gemma2",
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "final_logit_softcapping": 2.0,
}
MIXES = {"paligemma": (1, 1, 1), "mllama": MLLAMA_IMAGES}
CHUNK = 3
"""Answer tokens of a chunk."""


class World:
    """A tiny model with an expert in training, and a batch whose answers differ in length."""

    def __init__(self, family: str) -> None:
        self.backbone = make_backbone(family)
        self.batch: Batch = make_batch(self.backbone, make_samples(MIXES.get(family, (1, 0, 2))))
        self.library = ExpertLibrary(self.backbone.model, self.backbone.parts.modality_of)
        paths = all_linears(self.backbone)
        self.library.add("a", dict.fromkeys(paths, 2), dict.fromkeys(paths, 4.0))
        randomize(self.library, "a", 0.1)
        self.library.train_only("a")
        rows = self.backbone.vision_rows(self.batch.inputs, self.batch.image_counts)
        self.gates = Gates(["a"], torch.ones(3, 1), rows)

    def gradients(self, loss: Tensor) -> list[Tensor]:
        parameters = [parameter for _, parameter in self.library.parameters("a")]
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        return [torch.zeros(()) if gradient is None else gradient for gradient in found]


@pytest.mark.parametrize("family", [*FAMILIES, "soft cap"])
def test_loss_logits_and_gradients_are_those_of_the_whole_model(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if family == "soft cap":
        monkeypatch.setitem(tiny._LANGUAGE, "paligemma", SOFT_CAP)
        family = "paligemma"
    world = World(family)
    model, batch, targets = world.backbone.model, world.batch, world.batch.targets
    assert len(set(targets.samples.bincount().tolist())) > 1  # answers of several lengths
    with world.library.context.use(world.gates):
        whole = model(**batch.inputs, labels=batch.labels, use_cache=False)
        plain = world.gradients(whole.loss)
        found = [answer_output(model, batch.inputs, targets, limit) for limit in limits(model)]
        assert len(targets.tokens) > CHUNK
        for output in found:
            loss = output.loss()
            assert_close(loss, whole.loss)
            for ours, theirs in zip(world.gradients(loss), plain, strict=True):
                assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
            expected = whole.logits.flatten(0, 1)[targets.positions]
            assert_close(output.logits, expected, rtol=1e-5, atol=1e-5)


def limits(model: Any) -> tuple[None, int]:
    """Return the limits of logits for one chunk and for several."""
    return None, CHUNK * model.config.get_text_config().vocab_size


def test_no_other_logits_are_computed_and_few_at_a_time() -> None:
    world = World("llava")
    model, targets = world.backbone.model, world.batch.targets
    rows: list[int] = []
    model.get_output_embeddings().register_forward_hook(
        lambda module, args, output: rows.append(output.shape[:-1].numel())
    )
    for limit in limits(model):
        rows.clear()
        answer_output(model, world.batch.inputs, targets, limit).loss()
        assert sum(rows) == len(targets.tokens)
    assert max(rows) == CHUNK


def test_targets_are_the_tokens_that_labels_predict() -> None:
    labels = torch.tensor([[7, -100, 3, 1], [-100, 5, -100, -100]])  # nothing predicts the first
    targets = Targets.of(labels)
    assert targets.positions.tolist() == [1, 2, 4]
    assert targets.samples.tolist() == [0, 0, 1]
    assert targets.tokens.tolist() == [3, 1, 5]


class WithoutName(nn.Module):
    """A model that does not name its head, as classes outside of transformers may be."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 5)

    @property
    def base_model(self) -> nn.Module:
        return self

    def forward(self, x: Tensor, use_cache: bool) -> Any:
        return type("Output", (), {"logits": self.head(x)})


class Shifted(WithoutName):
    """A model whose head reads other positions than those of the batch."""

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, x: Tensor, use_cache: bool) -> Any:
        return super().forward(x[:, 1:], use_cache)


def test_a_model_that_does_not_name_its_head_computes_all_logits() -> None:
    model, labels = WithoutName(), torch.tensor([[-100, 4, 2], [-100, -100, 0]])
    x = torch.randn(2, 3, 3)
    found = answer_output(model, {"x": x}, Targets.of(labels)).loss()
    assert_close(found, cross_entropy(model.head(x)[:, :-1].flatten(0, 1), labels[:, 1:].flatten()))
    with pytest.raises(ValueError, match=r"head of Shifted reads states of shape \(2, 2, 3\), but"):
        answer_output(Shifted(), {"x": x}, Targets.of(labels))


def test_without_answer_tokens_loss_and_gradients_are_zero() -> None:
    world = World("llava")
    labels = torch.full_like(world.batch.labels, -100)
    with world.library.context.use(world.gates):
        loss = world.backbone.answer_output(world.batch.inputs, Targets.of(labels)).loss()
    assert loss.item() == 0
    gradients = torch.autograd.grad(loss, [p for _, p in world.library.parameters("a")])
    assert not any(gradient.any() for gradient in gradients)
