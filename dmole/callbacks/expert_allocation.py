"""Before each stage: score the layers, decide where the task gets an expert, put it there."""

from __future__ import annotations

import functools
import hashlib
import itertools
import logging
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from dmole.allocation import Allocation, score_gradients
from dmole.callbacks.base import ContinualCallback, parts
from dmole.data.labels import answer_tokens
from dmole.distributed import broadcast, gather_objects, sum_over_ranks
from dmole.experts.library import eval_mode
from dmole.module import labels_of
from dmole.storage.files import write_csv

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dmole.data import Batch
    from dmole.module import ContinualModule
    from dmole.streams.stream import Stage
    from dmole.trainer import ContinualTrainer

log = logging.getLogger("dmole")

COMMON = 0
"""Key of the plan of the expert that all stages share."""

HEADER = ("stage", "task", "module", "layer", "score", "expert", "rank")


class ExpertAllocation(ContinualCallback):
    """Adds a new expert before the optimizer exists, or lets an old one go on training.

    Acts in ``setup``, when the processes are connected and the model is not yet wrapped for
    distributed training, so that the new parameters are part of the wrap. The plan is rank 0's
    and verified on every rank. Writes ``allocation.csv``.
    """

    def __init__(self) -> None:
        self.allocations: dict[int, Allocation] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Place the stage's expert on the model."""
        if stage != "fit":
            return
        sequence, module, data = parts(trainer, pl_module)
        current = sequence.current_stage
        for name, key in ((module.router.common, COMMON), (current.expert, current.index)):
            if name is None or name in module.library.names:
                continue
            with sequence.timed("allocate"):
                own = plan_allocation(sequence, module, current, name)
                plan = self.allocations[key] = _agreed(own)
                module.add_expert(plan)
            self._report(sequence, module, plan)
        plan_of_stage = self.allocations.get(current.index)
        epochs = data.epochs(current.tasks)
        module.train_expert(current.expert, epochs, plan_of_stage, current.tasks)
        count = sum(p.numel() for p in module.backbone.parameters() if p.requires_grad)
        sequence.clock.parameters.setdefault("trainable", {})[current.expert] = count

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of ``allocation.csv``."""
        plans = self.allocations.items()
        return [row for index, plan in plans for row in plan.rows(max(1, index))]

    def _report(self, trainer: ContinualTrainer, module: ContinualModule, plan: Allocation) -> None:
        count = module.count_parameters(plan)
        shares = ", ".join(f"{tower} {share:.0%}" for tower, share in plan.difficulty.items())
        log.info(
            "expert %s: %s; %d parameters%s",
            plan.task,
            " ".join(entry.layer for entry in plan.experts),
            count,
            f" (difficulty: {shares})" if shares else "",
        )
        trainer.clock.parameters["base"] = module.backbone.parameter_count()
        if trainer.is_global_zero:
            write_csv(trainer.run_dir / "allocation.csv", HEADER, self.rows())

    def state_dict(self) -> dict[str, Any]:
        """Return the plans, as JSON texts by stage."""
        return {str(stage): plan.to_json() for stage, plan in self.allocations.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over saved plans."""
        self.allocations = {int(k): Allocation.from_json(v) for k, v in state_dict.items()}


def describe_allocation(plan: Allocation, parameters: int) -> str:
    """Return a plan as a table of text: layers, scores, experts, and what they cost."""
    lines = [f"expert {plan.task}: {parameters} parameters"]
    for tower, share in plan.difficulty.items():
        lines.append(f"  {tower}: difficulty {share:.1%}, budget {plan.budget[tower]}")
    for entry in plan.entries:
        score = "no gradient" if entry.score is None else f"{entry.score:.4g}"
        several = f"{entry.mixture} x " if entry.mixture > 1 else ""
        mark = f"{several}rank {entry.rank}" if entry.expert else "-"
        lines.append(f"  {entry.layer:<24} {score:>12}  {mark}")
    return "\n".join(lines)


def plan_allocation(
    trainer: ContinualTrainer, module: ContinualModule, stage: Stage, expert: str
) -> Allocation:
    """Return where a new expert goes, without adding it.

    The scores come from the bare base model and the data that arrives in the stage alone, without
    what is replayed, so where stages have sharp boundaries the plan does not depend on the order
    of the tasks.

    Args:
        trainer: Has data, device and the other ranks.
        module: Holds base model and allocator.
        stage: Has the tasks that the expert will be trained on first.
        expert: Name of the expert: the stage's own, or one that all stages share.

    Raises:
        Interrupted: If the run was asked to end.
    """
    units = module.units()
    scores = None
    allocator = module.allocator
    if allocator.needs_scores:
        device = trainer.strategy.root_device
        module.to(device)
        parameters = {
            unit.name: [p for path in unit.linears for p in module.backbone.linear_parameters(path)]
            for unit in units
        }
        batches = itertools.chain.from_iterable(
            trainer.data.proxy_batches(stage, task, allocator.proxy_fraction, module.seed)
            for task in stage.tasks
        )
        with eval_mode(module.backbone):
            scores = score_gradients(
                module.backbone.model,
                parameters,
                trainer.interruption.until_requested(batches),
                functools.partial(_proxy_losses, module, device),
                reduction=allocator.reduction,
                all_reduce=sum_over_ranks,
            )
        trainer.interruption.check(trainer.strategy)
    return allocator.allocate(expert, units, scores, first=not module.library.names)


def _proxy_losses(
    module: ContinualModule, device: torch.device, parts: Sequence[Batch]
) -> Tensor | Iterator[Tensor]:
    """Return the loss of a proxy batch, or its summands where it comes in parts.

    Each part weighs by its answer tokens, so that the sum is the mean over all of them. One part
    at a time is on the device.
    """
    if len(parts) == 1:
        return module.base_loss(move_data_to_device(parts[0], device))
    tokens = [int(answer_tokens(labels_of(part))) for part in parts]
    total = sum(tokens)
    return (
        module.base_loss(move_data_to_device(part, device)) * (own / total)
        for part, own in zip(parts, tokens, strict=True)
    )


def _agreed(plan: Allocation) -> Allocation:
    """Return rank 0's plan after making sure that every rank made the same.

    Raises:
        RuntimeError: If they differ: then ranks saw different data or scores.
    """
    if len(set(gather_objects(_digest(plan)))) > 1:
        raise RuntimeError(f"the ranks disagree where expert {plan.task!r} belongs")
    return Allocation.from_json(broadcast(plan.to_json()))


def _digest(plan: Allocation) -> str:
    """Return a hash of what a plan decides; scores may differ between machines by rounding."""
    decided = [(entry.layer, entry.expert, entry.rank) for entry in plan.entries]
    return hashlib.sha256(
        repr((plan.task, sorted(plan.budget.items()), decided)).encode()
    ).hexdigest()
