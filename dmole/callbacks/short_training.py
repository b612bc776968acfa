"""A short training of experts in all units, which shows where a task moves the model most."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from dmole.allocation.delta import relative_deltas
from dmole.callbacks.proxy_pass import proxy_losses
from dmole.curriculum.optimization import learning_rate_factor
from dmole.distributed import connected_ranks
from dmole.experts.library import eval_mode
from dmole.models.recomputation import recomputed_in_evaluation
from dmole.storage.seeds import derive_seed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lightning.pytorch import Trainer
    from torch import Tensor

    from dmole.allocation import Unit
    from dmole.allocation.allocators import Scores
    from dmole.data import Batch
    from dmole.distributed import Ranks
    from dmole.module import ContinualModule
    from dmole.run.state import SequenceState
    from dmole.streams.stream import Stage


def delta_scores(
    state: SequenceState,
    module: ContinualModule,
    stage: Stage,
    units: Sequence[Unit],
    expert: str,
) -> Scores:
    """Return how far a short training of experts in all units together moves each unit.

    The experts start as the new expert would, take ``score_steps`` optimizer steps without dropout
    and without past experts, and are deleted. All ranks take the same steps.

    Args:
        state: Has data and device; connects the ranks.
        module: Has base model, allocator and optimizer.
        stage: The first stage that trains the expert.
        units: All units of the model.
        expert: Name of the new expert.

    Returns:
        :func:`~dmole.allocation.delta.relative_deltas` by unit; None for a unit that no gradient
        reached, or of a modality that may not get experts.

    Raises:
        Interrupted: If a signal requested the end of the run.
        ValueError: If a gradient or an update is not finite, or the experts are not plain.
    """
    backbone, library = module.backbone, module.library
    largest = module.allocator.largest(expert, units, first=not library.names)
    module.add_expert(largest)
    try:
        library.train_only(expert)
        module.to(state.device)
        with eval_mode(backbone), recomputed_in_evaluation(backbone.model), torch.enable_grad():
            reached = _train(state, module, stage, expert)
        backbone.release()
        state.interruption.check(state.strategy)
        scores: dict[str, float | None] = dict.fromkeys(unit.name for unit in units)
        inside = [unit for unit in units if reached.intersection(unit.linears)]
        return scores | relative_deltas(library, expert, inside)
    finally:
        library.remove(expert)
        library.train_only()


def _train(state: SequenceState, module: ContinualModule, stage: Stage, expert: str) -> set[str]:
    """Train the experts, and return the paths of the linears that a gradient reached."""
    steps, device = module.allocator.score_steps, state.device
    ranks = connected_ranks(device)
    optimizer = module.make_optimizer(module.parameter_groups(expert))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, steps, module.warmup, module.schedule)
    )
    trained = [(path, p) for path, p in module.library.parameters(expert) if p.requires_grad]
    reached: set[str] = set()
    batches = _batches(state, module, stage)
    for step, parts in enumerate(itertools.islice(batches, steps), 1):
        losses = proxy_losses(module, device, ranks, parts, experts=(expert,))
        for loss in [losses] if isinstance(losses, torch.Tensor) else losses:
            if loss.requires_grad:  # else it depends on no unit
                loss.backward()
        _sum_gradients([parameter for _, parameter in trained], ranks)
        reached |= {path for path, parameter in trained if parameter.grad is not None}
        if not math.isfinite(_clip(state.trainer, [p for _, p in trained])):
            raise ValueError(
                f"stage {stage.name}: a gradient is not finite in step {step} of the training that "
                "scores the units"
            )
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if state.interruption.agreed(state.strategy):
            break
    return reached


def _batches(state: SequenceState, module: ContinualModule, stage: Stage) -> Iterator[list[Batch]]:
    """Yield this rank's parts of the stage's batches in random order, again and again.

    Groups of tasks that are scored apart from each other take turns.
    """
    for number in itertools.count():
        seed = derive_seed(module.seed, "delta", number)
        groups = [
            state.data.proxy_batches(stage, tasks, 1.0, seed)
            for tasks in stage.draw.scored(stage.tasks)
        ]
        for turn in itertools.zip_longest(*groups):
            yield from (parts for parts in turn if parts is not None)


def _sum_gradients(parameters: Sequence[nn.Parameter], ranks: Ranks | None) -> None:
    """Sum the gradients over the ranks in place; one that no rank has stays None."""
    if ranks is None:
        return
    own = [parameter.grad for parameter in parameters]
    has = torch.tensor([float(gradient is not None) for gradient in own])
    flat = [
        (torch.zeros_like(parameter) if gradient is None else gradient).flatten()
        for parameter, gradient in zip(parameters, own, strict=True)
    ]
    total = ranks.sum(torch.cat([*flat, has.to(flat[0].device)]))
    sizes = [parameter.numel() for parameter in parameters]
    *sums, counts = torch.split(total, [*sizes, len(parameters)])
    for parameter, gradient, count in zip(parameters, sums, counts.tolist(), strict=True):
        parameter.grad = gradient.view_as(parameter).clone() if count else None


def _clip(trainer: Trainer, parameters: Sequence[nn.Parameter]) -> float:
    """Clip the gradients as the trainer does, and return their norm before it."""
    limit, by_value = trainer.gradient_clip_val, trainer.gradient_clip_algorithm == "value"
    most = math.inf if limit is None or by_value else float(limit)
    norm: Tensor = nn.utils.clip_grad_norm_(parameters, most)
    if limit is not None and by_value:
        nn.utils.clip_grad_value_(parameters, float(limit))
    return float(norm)
