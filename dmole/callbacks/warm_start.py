"""Before a stage: past experts compared by the likelihood of the new task's answers."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from lightning.fabric.utilities import move_data_to_device

from dmole.allocation.start import answer_entropy
from dmole.data.labels import IGNORED, answer_tokens
from dmole.distributed import gather_objects, sum_over_ranks
from dmole.experts.library import eval_mode
from dmole.module import labels_of
from dmole.storage.seeds import derive_seed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dmole.data import Sample
    from dmole.module import ContinualModule
    from dmole.run.state import SequenceState
    from dmole.streams.stream import Stage


@dataclass(frozen=True)
class StartComparison:
    """Past experts compared on samples of a new task.

    Args:
        losses: Mean loss over the answer tokens with each expert; None stands for the start of a
            fresh expert, which is the base model. An expert that all stages share is active in all.
        entropy: Entropy of the answer tokens, see :func:`~dmole.allocation.start.answer_entropy`.
    """

    losses: dict[str | None, float]
    entropy: float

    def __str__(self) -> str:
        losses = (f"{loss:.3g} with {name or 'no expert'}" for name, loss in self.losses.items())
        return f"loss {', '.join(losses)}; entropy of the answers {self.entropy:.3g}"


def compare_starts(
    state: SequenceState, module: ContinualModule, stage: Stage, experts: Sequence[str]
) -> StartComparison:
    """Compare past experts on samples that arrive in a stage.

    Args:
        state: Has data and device; connects the ranks, which share the samples.
        module: Has base model, experts and allocator, whose ``start_samples`` bounds the samples.
        stage: The stage.
        experts: Names of past experts, each used alone but for the expert that all stages share.

    Raises:
        Interrupted: If a signal requested the end of the run.
        ValueError: If a loss is not finite; names the expert.
    """
    module.to(state.device)
    names = (None, *experts)
    shared = [name for name in (module.router.common,) if name in module.library.names]
    active = [[*filter(None, (name,)), *shared] for name in names]
    sums = torch.zeros(len(names) + 1, dtype=torch.float64)  # losses by name, then tokens
    answers: list[list[int]] = []
    loader = state.data.embedding_loader(
        chosen_samples(state, stage, module.allocator.start_samples, module.seed),
        shard=True,
        batch_size=state.data.stage_batch_size(stage.tasks),  # a test batch with loss may not fit
    )
    with eval_mode(module.backbone), torch.no_grad(), module.backbone.evaluating():
        for batch in state.until_requested(loader, module):
            batch = move_data_to_device(batch, state.device)
            labels = labels_of(batch)
            tokens = int(answer_tokens(labels))
            with module.vision.shared(keep=True):
                losses = [float(module.loss_with(batch, *used)) * tokens for used in active]
            sums += torch.tensor([*losses, tokens], dtype=torch.float64)
            answers += [row[row != IGNORED].tolist() for row in labels[: batch.real, 1:]]
    state.interruption.check(state.strategy)
    # float32 on the device, as some accelerators have no float64
    *totals, count = sum_over_ranks(sums.float().to(state.device)).tolist()
    means = {name: total / count for name, total in zip(names, totals, strict=True)}
    for name, loss in means.items():
        if not math.isfinite(loss):
            expert = "the base model" if name is None else f"expert {name}"
            raise ValueError(f"stage {stage.name}: the loss under {expert} is not finite")
    shares: list[list[list[int]]] = gather_objects(answers)
    return StartComparison(means, answer_entropy(itertools.chain.from_iterable(shares)))


def chosen_samples(
    state: SequenceState, stage: Stage, count: int, seed: int
) -> list[tuple[Sample, str]]:
    """Return a random choice of the samples that arrive in a stage, the same on every rank."""
    items = state.data.arriving_items(stage)
    generator = torch.Generator().manual_seed(derive_seed(seed, "start", stage.name))
    order = torch.randperm(len(items), generator=generator)[:count]
    return [items[index] for index in sorted(order.tolist())]
