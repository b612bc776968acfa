"""Resumes the training of a stage with other settings than it began with."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from dmole.run.lightning_private import set_finished_batches

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from dmole.module import ContinualModule
    from dmole.run.state import SequenceState

log = logging.getLogger("dmole")


@dataclass(frozen=True)
class SavedOptimizer:
    """The optimizer of a checkpoint, which a resumed stage continues under its own settings.

    Args:
        kind: Name of its class.
        state: State of each parameter, by position.
        position: Step on the schedule of the resumed run.
    """

    kind: str
    state: dict[int, dict[str, Any]]
    position: int


def adapt_checkpoint(
    state: SequenceState, module: ContinualModule, checkpoint: dict[str, Any], kind: str
) -> SavedOptimizer:
    """Convert position and optimizer of a checkpoint within a stage to the settings of this run.

    Lightning would restore the hyperparameters of the checkpoint over those of the run. So the
    optimizer is taken out, and the position counts batches of the size that they have now.

    Args:
        state: Has data and trainer.
        module: Has the stage.
        checkpoint: Content of ``stage.ckpt``; changed.
        kind: Name of the class of its optimizer.

    Raises:
        ValueError: If the stage is past its new end.
    """
    trainer, epochs = state.trainer, module.stage.epochs
    loader = checkpoint["sequence_stage"]["loader"]
    done, batches = state.data.batch_after(state.stage, loader)
    end = _limited(batches, trainer.limit_train_batches)
    past = loader["epoch"] - ((trainer.max_epochs or epochs) - epochs)  # finished epochs
    if done > end or past >= epochs:
        raise ValueError(
            f"stage {state.stage.index} is past its new end: {past} epochs and {done} batches of "
            f"the next are done, now it has {epochs} epochs of {end} batches"
        )
    set_finished_batches(checkpoint, done)
    parts = trainer.accumulate_grad_batches
    steps = math.ceil(done / parts) if done == end else done // parts
    (saved,) = checkpoint["optimizer_states"]
    checkpoint["optimizer_states"], checkpoint["lr_schedulers"] = [], []
    return SavedOptimizer(kind, saved["state"], past * math.ceil(end / parts) + steps)


def continue_optimizer(trainer: Trainer, module: ContinualModule, saved: SavedOptimizer) -> None:
    """Give the optimizer of this run the moments of the checkpoint, and its schedule the position.

    Moments restart if the class of the optimizer or the names of its state differ; the log says
    so.
    """
    (optimizer,), (config,) = trainer.optimizers, trainer.lr_scheduler_configs
    kind, names = type(optimizer).__name__, _state_names(module)
    before = {name for entry in saved.state.values() for name in entry}
    parameters = sum(len(group["params"]) for group in optimizer.param_groups)
    if kind != saved.kind or before - names or len(saved.state) not in (0, parameters):
        log.warning(
            "the optimizer is %s now, it was %s: its state (%s) restarts; parameters, schedule "
            "and position in the data continue",
            kind,
            saved.kind,
            ", ".join(sorted(before)) or "none",
        )
    elif names - before and before:
        missing = ", ".join(sorted(names - before))
        log.warning("%s has a state that the checkpoint lacks (%s): it restarts", kind, missing)
    else:
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": saved.state, "param_groups": groups})
    scheduler: Any = config.scheduler
    pairs = zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    rates = [base * factor(saved.position) for base, factor in pairs]
    position = {"last_epoch": saved.position, "_step_count": saved.position + 1}
    scheduler.load_state_dict(scheduler.state_dict() | position | {"_last_lr": rates})
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def _state_names(module: ContinualModule) -> set[str]:
    """Return the names of the state that the optimizer keeps of a parameter."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    parameter.grad = torch.zeros(1)
    optimizer = module.make_optimizer([parameter])
    optimizer.step(lambda: 0.0)
    return set(optimizer.state[parameter])


def _limited(batches: int, limit: float | None) -> int:
    """Return the number of batches of an epoch under Lightning's ``limit_train_batches``."""
    if limit is None:
        return batches
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)
