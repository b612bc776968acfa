"""The second part of the curriculum: scale the update of each modality during training."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from lightning.pytorch import LightningModule, Trainer

from dmole.callbacks.base import ContinualCallback, parts
from dmole.curriculum.factors import shares, update_factors
from dmole.distributed import sum_over_ranks
from dmole.modality import MODALITIES
from dmole.run.run_files import RunFile
from dmole.storage.files import write_csv

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dmole.module import ContinualModule
    from dmole.run.state import SequenceState

HEADER = ("stage", "expert", "modality", "difficulty", "budget", "factor", "step")

_OLD_COLUMNS = {"task": "expert", "module": "modality"}  # in runs of format 1

Mode = Literal["off", "static", "online"]
"""off: budget split only; static: from the proxy scores; online: from gradients while training."""
Favor = Literal["hard", "easy"]
"""hard: the modality with the larger difficulty learns faster; easy: the other one."""


class Curriculum(ContinualCallback):
    r"""Scales the learning rate of each modality by its difficulty.

    .. math:: f_M = \mathrm{clip}(r_M / \bar r,\; 1 / c,\; c)

    with :math:`r_M` the share of modality :math:`M` in the proxy score (``static``) or in a moving
    average of expert gradient norms (``online``), :math:`\bar r` the mean share of the modalities
    in training and :math:`c` the largest ratio. ``favor: easy`` takes :math:`1 / f_M`. Writes
    ``curriculum.csv``.

    Args:
        mode: Source of the difficulty; ``off`` leaves every factor at 1.
        max_ratio: Largest factor ``c``, at least 1.
        anneal: Whether to move the factors linearly to 1 over the stage.
        momentum: Momentum of the moving average in mode ``online``.
        favor: Whether the ``hard`` or the ``easy`` modality learns faster.

    Raises:
        ValueError: If an argument is out of range.

    Source:
        D-MoLE, https://arxiv.org/abs/2506.11672. The abstract mentions the update ratio of each
        module (here: modality); the released code has only the budget split. The factor is an
        addition of this package. It scales learning rates and not gradients, because Adam's step
        does not depend on the size of gradients.
    """

    def __init__(
        self,
        mode: Mode = "static",
        max_ratio: float = 2.0,
        anneal: bool = False,
        momentum: float = 0.9,
        favor: Favor = "hard",
    ) -> None:
        if mode not in get_args(Mode):
            raise ValueError(f"mode must be one of {get_args(Mode)}, got {mode!r}")
        if favor not in get_args(Favor):
            raise ValueError(f"favor must be one of {get_args(Favor)}, got {favor!r}")
        if max_ratio < 1:
            raise ValueError(f"max_ratio must be at least 1, got {max_ratio}")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}")
        self.mode = mode
        self.max_ratio = max_ratio
        self.anneal = anneal
        self.momentum = momentum
        self.favor = favor
        self.rows: list[dict[str, Any]] = []
        self._norms: dict[str, float] = {}
        self._difficulty: dict[str, float] = {}
        self._first_step = 0
        self._stage = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the difficulty of the stage from its allocation."""
        state, module = parts(trainer, pl_module)
        if self._stage == state.stage.index:
            return  # the run resumes within a stage
        self._stage = state.stage.index
        plan = module.stage.allocation
        self._norms = {}
        self._difficulty = dict(plan.difficulty) if plan is not None else {}
        self._first_step = trainer.global_step
        factors = self._factors(module)
        for name, difficulty in self._difficulty.items():
            self.rows.append(
                {
                    "stage": state.stage.index,
                    "expert": state.stage.expert,
                    "modality": name,
                    "difficulty": difficulty,
                    "budget": plan.budget.get(name, 0) if plan is not None else 0,
                    "factor": factors.get(name, 1.0),
                }
            )
        state.put(*self.run_files(state, module))

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set and log the factors of the next step."""
        _, module = parts(trainer, pl_module)
        progress = (trainer.global_step - self._first_step) / max(1, module.stage.steps)
        module.stage.update_scale = self._factors(module, progress)
        for name, factor in module.stage.update_scale.items():
            module.log(f"curriculum/factor_{name}", factor, batch_size=1)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Update the moving average of gradient norms, in mode ``online``."""
        if self.mode != "online":
            return
        for group in optimizer.param_groups:
            squares = [p.grad.float().pow(2).sum() for p in group["params"] if p.grad is not None]
            if squares and group["name"] in MODALITIES:
                norm = float(sum_over_ranks(torch.stack(squares).sum()).sqrt())
                if not math.isfinite(norm):
                    continue  # mixed precision overflowed; the step is skipped
                old = self._norms.get(group["name"], norm)
                self._norms[group["name"]] = self.momentum * old + (1 - self.momentum) * norm

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the final factors, in mode ``online``."""
        if self.mode != "online":
            return
        state, module = parts(trainer, pl_module)
        for name, factor in module.stage.update_scale.items():
            self.rows.append(
                {
                    "stage": state.stage.index,
                    "expert": state.stage.expert,
                    "modality": name,
                    "difficulty": shares(self._norms).get(name, ""),
                    "budget": "",
                    "factor": factor,
                    "step": trainer.global_step,
                }
            )
        state.put(*self.run_files(state, module))

    def _factors(self, module: ContinualModule, progress: float = 0.0) -> dict[str, float]:
        """Return the factor of each modality in training."""
        training = module.training_modalities()
        difficulty = shares(self._norms) if self.mode == "online" else self._difficulty
        measured = {name: difficulty[name] for name in training if name in difficulty}
        if self.mode == "off" or not measured:
            return dict.fromkeys(training, 1.0)
        factors = update_factors(measured, self.max_ratio)
        if self.favor == "easy":
            factors = {name: 1.0 / factor for name, factor in factors.items()}
        if "projector" in training and "language" in factors:
            factors["projector"] = factors["language"]  # scored and budgeted together
        if self.anneal:
            factors = {name: f + (1.0 - f) * progress for name, f in factors.items()}
        return {name: factors.get(name, 1.0) for name in training}

    def run_files(self, state: SequenceState, module: ContinualModule) -> Iterator[RunFile]:
        """Return ``curriculum.csv``, which exists once a stage trains."""
        if self._stage:
            yield RunFile(
                "curriculum.csv", lambda run: write_csv(run / "curriculum.csv", HEADER, self.rows)
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the table, the moving averages and the first step of the stage."""
        return {
            "rows": self.rows,
            "norms": self._norms,
            "difficulty": self._difficulty,
            "first_step": self._first_step,
            "stage": self._stage,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a saved state."""
        self.rows = [
            {_OLD_COLUMNS.get(name, name): value for name, value in row.items()}
            for row in state_dict["rows"]
        ]
        self._norms = dict(state_dict["norms"])
        self._difficulty = dict(state_dict["difficulty"])
        self._first_step = state_dict["first_step"]
        self._stage = state_dict["stage"]
