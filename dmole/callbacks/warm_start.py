"""Before a stage: the past expert under which the answers of the new task are likeliest."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from lightning.fabric.utilities import move_data_to_device

from dmole.data.labels import answer_tokens
from dmole.distributed import sum_over_ranks
from dmole.experts.library import eval_mode
from dmole.module import labels_of
from dmole.storage.seeds import derive_seed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dmole.data import Sample
    from dmole.module import ContinualModule
    from dmole.run.state import SequenceState
    from dmole.streams.stream import Stage


def start_losses(
    state: SequenceState, module: ContinualModule, stage: Stage, experts: Sequence[str]
) -> dict[str | None, float]:
    """Return the loss on samples that arrive in a stage, under each past expert and without one.

    Args:
        state: Has data and device; connects the ranks, which share the samples.
        module: Has base model, experts and allocator, whose ``start_samples`` bounds the samples.
        stage: The stage.
        experts: Names of past experts, each used alone.

    Returns:
        Mean over the answer tokens, by expert; None stands for the base model alone.

    Raises:
        Interrupted: If a signal requested the end of the run.
        ValueError: If a loss is not finite; names the expert.
    """
    module.to(state.device)
    names = (None, *experts)
    sums = torch.zeros(len(names) + 1, dtype=torch.float64)  # losses by name, then tokens
    loader = state.data.embedding_loader(
        chosen_samples(state, stage, module.allocator.start_samples, module.seed), shard=True
    )
    with eval_mode(module.backbone), torch.no_grad():
        for batch in state.interruption.until_requested(loader):
            batch = move_data_to_device(batch, state.device)
            tokens = int(answer_tokens(labels_of(batch)))
            losses = [float(module.loss_with(batch, name)) * tokens for name in names]
            sums += torch.tensor([*losses, tokens], dtype=torch.float64)
    state.interruption.check(state.strategy)
    # float32 on the device, as some accelerators have no float64
    *totals, count = sum_over_ranks(sums.float().to(state.device)).tolist()
    means = {name: total / count for name, total in zip(names, totals, strict=True)}
    for name, loss in means.items():
        if not math.isfinite(loss):
            under = "the base model" if name is None else f"expert {name}"
            raise ValueError(f"stage {stage.name}: the loss under {under} is not finite")
    return means


def closest_expert(losses: dict[str | None, float]) -> str | None:
    """Return the expert of the smallest loss; None if no expert is better than the base model.

    Example:
        >>> closest_expert({None: 2.0, "count": 0.5, "read": 0.9})
        'count'
    """
    return min(losses, key=losses.__getitem__)


def chosen_samples(
    state: SequenceState, stage: Stage, count: int, seed: int
) -> list[tuple[Sample, str]]:
    """Return a random choice of the samples that arrive in a stage, the same on every rank."""
    items = state.data.arriving_items(stage)
    generator = torch.Generator().manual_seed(derive_seed(seed, "start", stage.name))
    order = torch.randperm(len(items), generator=generator)[:count]
    return [items[index] for index in sorted(order.tolist())]
