"""Applies gradient rules between the backward pass and the optimizer step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from dmole.callbacks.base import ContinualCallback, parts
from dmole.curriculum.rules import GradientRule, Training
from dmole.curriculum.rules.observation import Observer
from dmole.distributed import is_distributed, sum_over_ranks

if TYPE_CHECKING:
    from dmole.module import ContinualModule
    from dmole.run.state import SequenceState


class GradientRules(ContinualCallback):
    """Lets rules change the gradients of each optimizer step, in the order of the list.

    They act once in a step: after its last backward pass, after the ranks have averaged their
    gradients and ``16-mixed`` has unscaled them, and before they are checked and clipped. A step
    that is left out, because a gradient is not finite, leaves no trace in the state of a rule.

    Args:
        rules: The rules; see `dmole.curriculum.rules`.

    Example:
        >>> from dmole.curriculum.rules import PastDirection
        >>> callback = GradientRules([PastDirection(probability=0.5)])
        >>> [type(rule).__name__ for rule in callback.rules]
        ['PastDirection']
    """

    def __init__(self, rules: list[GradientRule]) -> None:
        self.rules = rules
        self._observer = Observer([rule for rule in rules if rule.observes])
        self._steps = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Prepare the rules for a stage."""
        if stage != "fit":
            return
        state, module = parts(trainer, pl_module)
        module.stage.observed = any(rule.observes for rule in self.rules)
        with torch.no_grad():
            for rule in self.rules:
                rule.before_stage(_training(state, module))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Watch the linears, and let all ranks start from the same tensors."""
        state, module = parts(trainer, pl_module)
        self._steps = False
        self._observer.attach(_training(state, module))
        if is_distributed():  # processors of another kind may round a decomposition differently
            for tensor in (tensor for rule in self.rules for tensor in rule.derived()):
                dist.broadcast(tensor, src=0)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Observe the forward of a micro-batch."""
        self._observer.open()

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Stop observing: activations may be recomputed."""
        self._observer.close()

    @torch.no_grad()
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Let the rules change the gradients of the whole step."""
        training = _training(*parts(trainer, pl_module))
        self._steps = True
        for rule in self.rules:
            rule.apply(training)

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the state of the rules after a step, before a checkpoint is written."""
        if not self._steps:
            return  # the gradients of the step are not complete
        state, module = parts(trainer, pl_module)
        self._steps = False
        training = _training(state, module)
        for rule in self.rules:
            if module.guard.admitted:
                _sum_over_ranks(rule.pending())
                rule.after_step(training)
            rule.clear()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the hooks."""
        self._observer.detach()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Remove the hooks."""
        self._observer.detach()

    @torch.no_grad()
    def on_stage_trained(self, state: SequenceState, module: ContinualModule) -> None:
        """Let the rules store what later stages need."""
        for rule in self.rules:
            rule.after_stage(_training(state, module))

    def learned_tensors(self) -> dict[str, Tensor]:
        """Return the state of all rules, by index and name."""
        return {
            f"{index}/{key}": tensor
            for index, rule in enumerate(self.rules)
            for key, tensor in rule.tensors().items()
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the state of all rules; empty if they have none."""
        tensors = self.learned_tensors()
        return {"tensors": tensors} if tensors else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a saved state.

        Raises:
            ValueError: If a tensor is unknown or of another shape; names the rule.
        """
        tensors = state_dict["tensors"]
        if not isinstance(tensors, dict) or not all(_is_state(*p) for p in tensors.items()):
            raise ValueError("GradientRules: the state is no table of finite tensors by name")
        tables: list[dict[str, Tensor]] = [{} for _ in self.rules]
        for key, tensor in tensors.items():
            index, _, name = key.partition("/")
            if not index.isdecimal() or int(index) >= len(tables):
                raise ValueError(f"GradientRules: there is no rule for the state {key!r:.80}")
            tables[int(index)][name] = tensor
        for rule, table in zip(self.rules, tables, strict=True):
            try:
                rule.load_tensors(table)
            except ValueError as error:
                raise ValueError(f"{type(rule).__name__}: {error}") from error


def _training(state: SequenceState, module: ContinualModule) -> Training:
    return Training(
        module.library,
        module.training_experts,
        state.stage.index,
        module.seed,
        state.trainer.global_step,
        state.device,
    )


def _is_state(key: object, value: object) -> bool:
    return isinstance(key, str) and isinstance(value, Tensor) and bool(value.isfinite().all())


def _sum_over_ranks(tensors: list[Tensor]) -> None:
    """Replace tensors by their sums over the ranks, in one exchange."""
    if not tensors or not is_distributed():
        return
    flat = sum_over_ranks(torch.cat([tensor.reshape(-1) for tensor in tensors]))
    sizes = [tensor.numel() for tensor in tensors]
    for tensor, part in zip(tensors, torch.split(flat, sizes), strict=True):
        tensor.copy_(part.view_as(tensor))
