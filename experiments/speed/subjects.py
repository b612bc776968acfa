"""What is measured: a base model, modules with experts on copies that share its weights, and PEFT.

``tiny`` is the embedded model with real samples. ``medium`` and ``wide`` are a LLaVA with random
weights: 12 + 12 blocks of width 512, and 4 + 4 blocks of width 2048.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dmole.allocation import UniformAllocator
from dmole.data import Batch
from dmole.experts import Gates
from dmole.models import Backbone, PretrainedBackbone
from dmole.models.discovery import Patterns
from dmole.module import ContinualModule
from dmole.routing import AutoencoderRouter
from dmole.routing.routers import Routing, route_by_name
from experiments.gpu.common import Setting
from experiments.gpu.llava import BLOCKS, build_model, make_batch
from experiments.gpu.routed import fit_router, outside_a_run, place_experts, without_labels
from experiments.gpu.syncs import tiny_batch

MODELS = ("tiny", "medium", "wide")
RANK, ALPHA = 8, 16.0
TOKENS = {"tiny": 16, "medium": 32, "wide": 32, "small": 4}
"""Tokens of an answer."""
BATCH = {"tiny": (8, 8), "medium": (4, 8), "wide": (4, 8), "small": (2, 4)}
"""Samples of a training step, and of an answered batch."""


@dataclass
class Subject:
    """A base model and the batches that all variants get.

    Args:
        name: One of `MODELS`.
        setting: CPU, in float32.
        base: The base model; variants are copies that share its weights.
        train: A batch to train on.
        prompts: A batch to answer.
    """

    name: str
    setting: Setting
    base: Backbone
    train: Batch
    prompts: Batch

    @property
    def tokens(self) -> int:
        """Tokens of an answer."""
        return TOKENS[self.name]

    def module(self, experts: int) -> ContinualModule:
        """Return a module with experts on random halves of the blocks; the last one trains."""
        module = ContinualModule(
            share(self.base),
            UniformAllocator(rank=RANK),
            AutoencoderRouter(components=16),
            dropout=0.0,
        )
        _never_end(module.backbone)
        place_experts(module, [f"task{index}" for index in range(experts)], RANK, ALPHA)
        embeddings = module.embed(self.prompts, remember=False)
        noise = torch.randn(64, embeddings.shape[1], generator=torch.Generator().manual_seed(0))
        fit_router(module, module.experts, embeddings.mean(dim=0) + noise * embeddings.std())
        outside_a_run(module, module.experts[-1])
        return module

    def peft(self, parameters: int, adapters: int = 1) -> tuple[nn.Module, int]:
        """Return the model with PEFT's LoRA on all blocks, and the rank for so many parameters."""
        import peft

        shapes = self.base.linear_shapes()
        rank = max(1, round(parameters / sum(sum(shape) for shape in shapes.values())))
        config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(shapes))
        names = [f"task{index}" for index in range(adapters)]
        model: Any = peft.get_peft_model(share(self.base).model, config, adapter_name=names[0])
        for name in names[1:]:
            model.add_adapter(name, config)
        return model, rank


def share(base: Backbone) -> Backbone:
    """Return a copy of a backbone whose weights are those of the original."""
    tensors = itertools.chain(base.parameters(), base.buffers())
    return copy.deepcopy(base, {id(tensor): tensor for tensor in tensors})


def build(name: str) -> Subject:
    """Return a base model with its batches.

    Args:
        name: One of `MODELS`, or ``small`` for a LLaVA that takes milliseconds.
    """
    base = {"tiny": "medium", "small": "tiny"}.get(name, name)
    setting = Setting("cpu", Path(), base=base, dtype=torch.float32)
    trained, answered = BATCH[name]
    if name == "tiny":
        backbone: Backbone = PretrainedBackbone("tiny")
        module = ContinualModule(backbone, UniformAllocator(), AutoencoderRouter())
        train = tiny_batch(setting, module, trained, train=True)
        prompts = tiny_batch(setting, module, answered, train=False)
    else:
        backbone = Backbone(build_model(setting), None, Patterns(layers=BLOCKS_OF[name]))
        backbone.decode = lambda tokens: [""] * len(tokens)  # type: ignore[method-assign]
        train = make_batch(setting, trained)
        prompts = without_labels(make_batch(setting, answered))
    _never_end(backbone)
    return Subject(name, setting, backbone, train, prompts)


def _never_end(backbone: Backbone) -> None:
    """Make all answers equally long."""
    model: Any = backbone.model
    model.generation_config.eos_token_id = None


BLOCKS_OF = {
    "medium": BLOCKS.replace(r"(\d|1\d|2[0-2])", r"(\d|10)"),
    "wide": BLOCKS.replace(r"(\d|1\d|2[0-2])", r"[0-2]"),
    "small": BLOCKS.replace(r"(\d|1\d|2[0-2])", r"[0-1]"),
}
"""The projector does not read the last vision block of a LLaVA."""


def fresh(batch: Batch, numbers: itertools.count[int]) -> Batch:
    """Return a batch whose samples no one has seen."""
    number = next(numbers)
    return replace(batch, sample_ids=[f"{number}/{index}" for index in range(len(batch))])


def forced(module: ContinualModule, order: Sequence[tuple[str, ...]]) -> None:
    """Let the router do its work and then return these experts for the samples of a batch."""
    router: Any = module.router
    real = router.route

    def route(query: Any) -> Routing:
        losses = real(query).losses
        return Routing(route_by_name(order, query.experts).gates, list(order), losses)

    router.route = route


def gates_of(module: ContinualModule, batch: Batch, order: Sequence[tuple[str, ...]]) -> Gates:
    """Return the gates of samples with these experts."""
    gates = module.make_gates(route_by_name(order, module.experts).gates, batch)
    assert gates is not None
    return gates
