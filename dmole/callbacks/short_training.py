"""A short training of experts in all units, which shows where a task moves the model most."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dmole.allocation.delta import relative_deltas
from dmole.callbacks.proxy_pass import proxy_losses
from dmole.curriculum.optimization import clip_gradients, scheduled
from dmole.distributed import connected_ranks
from dmole.experts.library import eval_mode
from dmole.models.embedder import sample_keys
from dmole.models.recomputation import recomputed_in_evaluation
from dmole.steps.finite import sample_list

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dmole.allocation import Unit
    from dmole.allocation.allocators import Scores
    from dmole.data import Batch
    from dmole.distributed import Ranks
    from dmole.module import ContinualModule
    from dmole.run.state import SequenceState
    from dmole.streams.stream import Stage

log = logging.getLogger("dmole")


def delta_scores(
    state: SequenceState,
    module: ContinualModule,
    stage: Stage,
    units: Sequence[Unit],
    expert: str,
) -> Scores:
    """Return how far a short training of experts in all units together moves each unit.

    The experts start as those of LoRA, take ``score_steps`` optimizer steps without dropout and
    without past experts, and are deleted. All ranks take the same steps.

    Args:
        state: Has data and device; connects the ranks.
        module: Has base model, allocator and optimizer.
        stage: The first stage that trains the expert.
        units: All units of the model.
        expert: Name of the new expert.

    Returns:
        :func:`~dmole.allocation.delta.relative_deltas` by unit; None for a unit that no gradient
        moved, or of a modality that may not get experts.

    Raises:
        Interrupted: If a signal requested the end of the run.
        ValueError: If more gradients are not finite than steps may be skipped, or an update is not.
    """
    backbone, library = module.backbone, module.library
    largest = module.allocator.largest(expert, units, first=not library.names)
    steps = module.allocator.score_steps
    log.info("expert %s: %d steps of experts in all units score them", expert, steps)
    module.add_expert(largest)
    try:
        library.train_only(expert)
        module.to(state.device)
        with eval_mode(backbone), recomputed_in_evaluation(backbone.model), torch.enable_grad():
            _ShortTraining(state, module, stage, expert).run(steps)
        state.interruption.check(state.strategy)
        moved = relative_deltas(library, expert, units)
        return {unit.name: moved.get(unit.name) or None for unit in units}
    finally:
        library.remove(expert)
        library.train_only()


class _ShortTraining:
    """Optimizer steps of an expert on the batches of a stage, as the stage would make them."""

    def __init__(
        self, state: SequenceState, module: ContinualModule, stage: Stage, expert: str
    ) -> None:
        self._state, self._module, self._stage, self._expert = state, module, stage, expert
        self._parameters = [p for _, p in module.library.parameters(expert) if p.requires_grad]
        self._ranks = connected_ranks(state.device)
        # the loss scaler of 16-mixed; without one, it does nothing
        scaled = getattr(state.trainer.precision_plugin, "scaler", None) is not None
        self._scaler = torch.amp.GradScaler(state.device.type, enabled=scaled)
        self._skipped = 0

    def run(self, steps: int) -> None:
        """Make the steps, fewer if a signal requests the end of the run."""
        state, module = self._state, self._module
        optimizer = module.make_optimizer(module.parameter_groups(self._expert))
        schedule = scheduled(optimizer, steps, module.warmup, module.schedule)
        batches = state.data.random_steps(self._stage, steps, module.seed)
        for number, parts in enumerate(batches, 1):
            for loss in self._losses(parts):
                if loss.requires_grad:  # else it depends on no unit
                    self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            _sum_gradients(self._parameters, self._ranks)
            self._scaler.unscale_(optimizer)
            if self._admits(clip_gradients(state.trainer, self._parameters), number, parts):
                self._scaler.step(optimizer)
                self._scaler.update()
            optimizer.zero_grad()
            schedule.step()
            module.backbone.release()
            if state.interruption.agreed(state.strategy):
                break

    def _losses(self, parts: Sequence[Batch]) -> Iterator[Tensor]:
        """Yield the summands of the loss of a step, each computed in the trainer's precision."""
        precise = self._state.trainer.precision_plugin.forward_context
        module, device = self._module, self._state.device
        with precise():
            found = proxy_losses(module, device, self._ranks, parts, experts=(self._expert,))
        if isinstance(found, Tensor):
            yield found
            return
        pending = iter(found)
        while True:
            with precise():
                loss = next(pending, None)
            if loss is None:
                return
            yield loss

    def _admits(self, norm: float, number: int, parts: Sequence[Batch]) -> bool:
        """Return whether to make a step, by the norm of its gradients, the same on all ranks."""
        if math.isfinite(norm) or self._scaler.is_enabled():  # the scaler leaves such steps out
            return True
        keys = [key for part in parts for key in sample_keys(part)]
        text = (
            f"stage {self._stage.name}: a gradient is not finite in step {number} of the training "
            f"that scores the units; samples: {sample_list(keys)}"
        )
        self._skipped += 1
        if self._skipped > self._module.skip_nonfinite_steps:
            raise ValueError(text)
        log.warning("%s; the step is left out", text)
        return False


def _sum_gradients(parameters: Sequence[nn.Parameter], ranks: Ranks | None) -> None:
    """Sum the gradients over the ranks in place; one that no rank has stays None."""
    if ranks is None:
        return
    flat = [
        (torch.zeros_like(parameter) if parameter.grad is None else parameter.grad).flatten()
        for parameter in parameters
    ]
    has = flat[0].new_tensor([float(parameter.grad is not None) for parameter in parameters])
    total = ranks.sum(torch.cat([*flat, has]))
    del flat
    *sums, counts = torch.split(total, [*(p.numel() for p in parameters), len(parameters)])
    for parameter, gradient, count in zip(parameters, sums, counts.tolist(), strict=True):
        if not count:
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        parameter.grad.copy_(gradient.view_as(parameter))
