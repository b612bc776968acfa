"""Activations are recomputed in evaluation mode without dropout."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from families import FAMILIES, MLLAMA_IMAGES, make_backbone, make_batch, make_samples
from memory_meter import saved_bytes
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from dmole.models.recomputation import recomputed_in_evaluation

UNSUPPORTED = {"mllama": ("vision",)}
"""Parts whose blocks transformers does not recompute in training either."""


class Block(GradientCheckpointingLayer):
    """A block that drops entries itself, as those of OPT do, and in a submodule."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.dropout = nn.Dropout(0.5)
        self.runs = 0
        self.gradient_checkpointing = True
        self._gradient_checkpointing_func = self.recompute

    def recompute(self, *args: object) -> Tensor:
        result: Tensor = checkpoint(*args, use_reentrant=False)
        return result

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        x = self.dropout(self.linear(x).tanh())
        return F.dropout(x, 0.5, training=self.training)


def test_a_block_is_recomputed_without_dropout_and_its_modes_are_restored_also_on_error() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Block(), Block()).eval()
    functions = [block._gradient_checkpointing_func for block in model]
    x = torch.randn(3, 4)
    expected = torch.autograd.grad(model(x).sum(), list(model.parameters()))
    with recomputed_in_evaluation(model):
        assert [type(m) for m in model.modules() if m.training] == [Block, Block]
        found = torch.autograd.grad(model(x).sum(), list(model.parameters()))
    assert all(torch.equal(*pair) for pair in zip(expected, found, strict=True))
    assert [block.runs for block in model] == [3, 3]
    with pytest.raises(RuntimeError, match="mat1"), recomputed_in_evaluation(model):
        model(torch.randn(3, 5))
    assert not any(module.training for module in model.modules())
    assert [block._gradient_checkpointing_func for block in model] == functions


def test_blocks_in_training_and_without_checkpointing_are_left_alone() -> None:
    training, plain = Block().train(), Block().eval()
    plain.gradient_checkpointing = False
    model = nn.ModuleList([training, plain])
    with recomputed_in_evaluation(model):
        assert (training.training, plain.training) == (True, False)
        assert training.dropout.training
    assert (training.training, plain.training) == (True, False)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_keeps_fewer_activations_in_evaluation_mode(family: str) -> None:
    backbone = make_backbone(family)
    images = MLLAMA_IMAGES if family == "mllama" else (1, 1, 1)
    batch = make_batch(backbone, make_samples(images))
    backbone.checkpoint_activations(lambda: (nullcontext(), nullcontext()))
    backbone.model.requires_grad_(True)

    def kept() -> int:
        with saved_bytes(backbone.model.parameters()) as count:
            loss = backbone.answer_output(batch.inputs, batch.targets).loss()
            result = count()
        loss.backward()
        return result

    before = kept()
    with recomputed_in_evaluation(backbone.model):
        blocks = [b for b in backbone.blocks if b.modality not in UNSUPPORTED.get(family, ())]
        blocks = [b for b in blocks if b.modality != "projector"]
        assert all(backbone.model.get_submodule(block.path).training for block in blocks)
        after = kept()
    assert after < 0.8 * before
