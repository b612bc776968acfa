"""Blocks below the lowest expert in training have no part in the backward pass."""

from __future__ import annotations

import weakref
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from families import make_backbone, make_batch, make_samples, randomize
from torch import Tensor

from dmole.allocation import UniformAllocator
from dmole.module import ContinualModule
from dmole.routing import AllExpertsRouter
from dmole.run.context import StageContext

TOP = "language.1"


class Saved:
    """A tensor that autograd keeps for the backward pass of a block."""

    def __init__(self, tensor: Tensor, block: str) -> None:
        self.tensor = tensor
        self.block = block


class BlockMeter:
    """Counts the passes of each block, and finds those of which autograd keeps a tensor."""

    def __init__(self, module: ContinualModule) -> None:
        self.passes: Counter[str] = Counter()
        self._kept: weakref.WeakSet[Saved] = weakref.WeakSet()
        self._current = ""
        for block in module.backbone.blocks:
            part = module.backbone.model.get_submodule(block.path)
            part.register_forward_pre_hook(lambda *_, name=block.name: self._enter(name))
            part.register_forward_hook(lambda *_: self._enter(""))
            # a checkpoint computes the block again without its hooks
            first = module.backbone.model.get_submodule(block.linears[0])
            first.register_forward_pre_hook(lambda *_, name=block.name: self._count(name))

    def _enter(self, name: str) -> None:
        self._current = name

    def _count(self, name: str) -> None:
        self.passes[name] += 1

    def pack(self, tensor: Tensor) -> Saved:
        saved = Saved(tensor, self._current)
        self._kept.add(saved)
        return saved

    def kept(self) -> set[str]:
        return {saved.block for saved in self._kept if saved.block}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_only_the_blocks_from_the_lowest_expert_on_save_tensors_and_run_again(
    family: str, checkpointing: bool
) -> None:
    module = ContinualModule(
        make_backbone(family),
        UniformAllocator(rank=2),
        AllExpertsRouter(),
        dropout=0.0,
        activation_checkpointing=checkpointing,
    )
    for name, blocks in (("old", None), ("new", {TOP})):  # the old expert is live in all blocks
        paths = [
            path
            for block in module.backbone.blocks
            if blocks is None or block.name in blocks
            for path in block.linears
        ]
        module.library.add(name, dict.fromkeys(paths, 2), dict.fromkeys(paths, 4.0))
        randomize(module.library, name, 0.1)
    module._trainer = SimpleNamespace(global_step=0)
    module.log = lambda *_, **__: None
    module.begin_stage(StageContext(1, ("new",)))
    module.train()
    batch = make_batch(module.backbone, make_samples((1, 0, 2)))
    meter = BlockMeter(module)
    with torch.autograd.graph.saved_tensors_hooks(meter.pack, lambda saved: saved.tensor):
        loss = module.training_step(batch, 0)
        kept = meter.kept()
        loss.backward()
    again = {name for name, count in meter.passes.items() if count > 1}
    assert kept == {TOP}
    assert again == ({TOP} if checkpointing else set())
