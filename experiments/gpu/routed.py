"""A module with many experts outside a run, and its steps."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from dmole.data import Batch
from dmole.experts import Gates
from dmole.module import ContinualModule
from dmole.routing.routers import route_by_name
from dmole.run.context import StageContext


def place_experts(
    module: ContinualModule, names: Iterable[str], rank: int, alpha: float
) -> list[str]:
    """Add experts to random halves of the blocks of each modality, with weights that count.

    Args:
        module: The module; its router gets no entries.
        names: Names of the new experts.
        rank: Rank of every expert.
        alpha: Numerator of their scaling.

    Returns:
        The names.
    """
    added = list(names)
    for name in added:
        linears = _half(module, seed=len(module.library.names))
        module.library.add(name, dict.fromkeys(linears, rank), dict.fromkeys(linears, alpha))
        randomize(module, name)
    return added


def randomize(module: ContinualModule, name: str) -> None:
    """Draw the up-projections of an expert, which start at zero, on their device."""
    for _, expert in module.library.experts(name):
        torch.nn.init.normal_(expert.get_parameter("lora_b"), std=0.01)


def _half(module: ContinualModule, seed: int) -> list[str]:
    draw = random.Random(seed)
    chosen = []
    for modality in ("vision", "language"):
        blocks = [block for block in module.backbone.blocks if block.modality == modality]
        chosen += draw.sample(blocks, max(1, len(blocks) // 2))
    return [path for block in chosen for path in block.linears]


def fit_router(module: ContinualModule, names: Sequence[str], embeddings: Tensor) -> None:
    """Fit a router entry for each expert, to embeddings that are moved in a direction of its own.

    Args:
        module: Has the router.
        names: The experts.
        embeddings: ``(N, D)`` float32 on the CPU.
    """
    generator = torch.Generator().manual_seed(0)
    for name in names:
        shift = torch.randn(embeddings.shape[1], generator=generator)
        module.router.fit(name, embeddings + shift * embeddings.std())


def outside_a_run(module: ContinualModule, name: str) -> None:
    """Let a module train one expert without a trainer, with nothing logged."""
    state: Any = module
    state._trainer = SimpleNamespace(global_step=0)
    state.log = lambda *_, **__: None
    module.begin_stage(StageContext(1, (name,)))
    module.train()


def training_step(module: ContinualModule, batch: Batch) -> Callable[[], None]:
    """Return a function that makes an optimizer step on a batch, embeddings not cached."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5)
    mixed = next(module.backbone.parameters()).dtype == torch.bfloat16

    def step() -> None:
        with torch.autocast(module.device.type, torch.bfloat16, enabled=mixed):
            loss = module.training_step(batch, 0)
        loss.backward()
        module.on_after_backward()
        named = module.trained_parameters()
        module.guard.admits(named, optimizer, module.position())
        optimizer.step()
        module.guard.check_result(named, optimizer, module.position())
        optimizer.zero_grad(set_to_none=True)

    return step


def forced_gates(module: ContinualModule, batch: Batch, names: Sequence[str]) -> Gates | None:
    """Return the gates that give the samples of a batch these experts in turn."""
    order = [(names[index % len(names)],) for index in range(len(batch))]
    return module.make_gates(route_by_name(order, module.experts).gates, batch)


def without_labels(batch: Batch) -> Batch:
    """Return a batch to answer."""
    return replace(batch, labels=None)
