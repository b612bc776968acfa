"""The part of the Lightning module that makes an optimizer step of one or more micro-batches."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from dmole.data.window import Window, counts_of
from dmole.distributed import in_process_group
from dmole.steps.accumulation import Accumulation, Share
from dmole.steps.guard import StepGuard
from dmole.steps.restored import RestoredState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dmole.data import Batch


class StepModule(LightningModule):
    """Weighs the micro-batches of each optimizer step and makes no step that is not finite.

    Args:
        skip_nonfinite_steps: Optimizer steps of a stage that are left out if a loss or a gradient
            is not finite.
    """

    def __init__(self, skip_nonfinite_steps: int = 0) -> None:
        super().__init__()
        self.skip_nonfinite_steps = skip_nonfinite_steps
        self.guard = StepGuard(skip_nonfinite_steps)
        self.restored = RestoredState()
        self._accumulation = Accumulation()
        self._trained: Mapping[str, Tensor] | None = None

    @abstractmethod
    def collect_trained(self) -> Mapping[str, Tensor]:
        """Return all parameters that train, by names for messages."""

    def trained_parameters(self) -> Mapping[str, Tensor]:
        """Return all parameters that train, by names for messages, collected once for a stage."""
        if self._trained is None:
            self._trained = self.collect_trained()
        return self._trained

    def forget_trained(self) -> None:
        """Collect the parameters that train again, since they may have changed."""
        self._trained = None

    @abstractmethod
    def position(self) -> str:
        """Return the current step as a part of a message."""

    def window_of(self, batch: Batch) -> Window:
        """Return the place of a batch in its optimizer step.

        Raises:
            ValueError: If gradients are accumulated and the batch does not know its window.
        """
        if batch.window is not None:
            return batch.window
        if self._accumulated() > 1:
            raise ValueError(
                "accumulate_grad_batches needs batches that know how many tokens their window "
                "has: train with a ContinualDataModule"
            )
        own = counts_of(batch.host)
        return Window(own, own, first=True)

    def _accumulated(self) -> int:
        # whatever stands for a trainer outside of a fit accumulates nothing
        return getattr(self.trainer, "accumulate_grad_batches", 1)

    def share_of(self, loss: Tensor, window: Window, keys: Sequence[str]) -> Share:
        """Return the weight of a micro-batch, and log the loss of its step. All ranks must call it.

        Args:
            loss: Mean over the answer tokens of this rank, scalar; zero if there are none.
            window: Place of the micro-batch in its step.
            keys: Its samples.
        """
        share, mean = self._accumulation.enter(loss, window, self._accumulated())
        value = loss.detach()  # what is watched must not keep the graph
        self.guard.watch(
            value,
            lambda: f"the loss is {value.item()} {self.position()}; samples: {', '.join(keys)}",
        )
        mean = self._accumulation.mean_loss(mean)
        self.log("train/loss", mean, prog_bar=True, batch_size=len(keys))
        return share

    def log_term(self, name: str, value: Tensor) -> None:
        """Log a weighted term of the loss, summed over its step."""
        self.log(f"train/{name}", self._accumulation.term(name, value), batch_size=1)

    def watch_term(self, name: str, value: Tensor) -> None:
        """Leave the step out if a weighted term of the loss is not finite."""
        value = value.detach()
        self.guard.watch(
            value, lambda: f"the term {name} of the loss is {value.item()} {self.position()}"
        )

    def anchored(self, loss: Tensor) -> Tensor:
        """Return a loss that has a gradient, in a process group for every trainable parameter.

        A batch without images leaves vision experts out of the graph, and DDP, also that of a
        single process, would wait for their gradients forever.
        """
        if loss.requires_grad and not in_process_group():
            return loss
        return loss + 0.0 * torch.stack([p.sum() for p in self.trained_parameters().values()]).sum()

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients, or leave the step out if they are not finite.

        Raises:
            NonFiniteError: If they are not finite and no further step may be left out.
        """
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if self.guard.admits(self.trained_parameters(), optimizer, self.position(), scaler):
            self.clip_gradients(
                optimizer,
                gradient_clip_val=gradient_clip_val,
                gradient_clip_algorithm=gradient_clip_algorithm,
            )
        self.restored.enter()  # the optimizer steps with its state

    def on_after_backward(self) -> None:
        """Give a gradient of zero to parameters that the loss of this rank does not depend on.

        A batch without images leaves vision experts out of the graph; the optimizer decays them
        like the others.
        """
        for parameter in self.trained_parameters().values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, *args: Any) -> None:
        """Make a step; its result is checked before the next one is made."""
        position = self.position()
        super().optimizer_step(epoch, batch_idx, optimizer, *args)
        self.restored.leave()
        self.guard.check_result(self.trained_parameters(), optimizer, position)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write no checkpoint of a step whose result is not finite.

        Raises:
            NonFiniteError: If a parameter or the optimizer's state is not finite.
        """
        self.guard.drain()

    def on_train_end(self) -> None:
        """End no stage with a step whose result is not finite.

        Raises:
            NonFiniteError: If a parameter or the optimizer's state is not finite.
        """
        self.guard.drain()

    def lr_scheduler_step(self, scheduler: Any, metric: Any | None) -> None:
        """Make a step of the schedule, which ends the first step after a resume."""
        self.restored.enter()
        super().lr_scheduler_step(scheduler, metric)
        self.restored.close()
