"""Base class of the gradient rules: what an optimizer step makes of its gradients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from dmole.experts import ExpertLibrary, LoRAExpert, RoutedLinear

_HOST = torch.device("cpu")


@dataclass(frozen=True)
class Training:
    """The experts in training, as input of a gradient rule.

    Args:
        library: All experts.
        experts: Names of the experts in training: that of the stage, then the one that all stages
            share.
        stage: 1-based number of the stage.
        seed: Seed of the module.
        number: Optimizer steps since the start of the sequence.
        device: Device of this process, on which the experts train. Before a stage they may be
            elsewhere.
    """

    library: ExpertLibrary
    experts: tuple[str, ...]
    stage: int
    seed: int = 0
    number: int = 0
    device: torch.device = _HOST

    def updates(self) -> Iterator[tuple[str, LoRAExpert]]:
        """Yield ``(path of the linear, update)`` of every update with a trainable parameter."""
        for name in self.experts:
            for path, expert in self.library.experts(name):
                if expert.learning:
                    yield path, expert

    def paths(self) -> list[str]:
        """Return the paths of the linears with a trainable parameter, each once."""
        return list(dict.fromkeys(path for path, _ in self.updates()))

    def linear(self, path: str) -> RoutedLinear:
        """Return a linear with experts by its full path."""
        return cast("RoutedLinear", self.library.model.get_submodule(path))

    def widths(self) -> dict[str, int]:
        """Return the number of inputs of each linear with a trainable parameter, by path."""
        return {path: self.linear(path).in_features for path in self.paths()}

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return the trainable parameters, by ``<expert>/<linear>.<tensor>``."""
        return {
            f"{name}/{path}.{key}": parameter
            for name in self.experts
            for path, expert in self.library.experts(name)
            for key, parameter in expert.named_parameters()
            if parameter.requires_grad
        }


class GradientRule(ABC):
    """Changes the gradients of an optimizer step after the backward pass, before clipping.

    The gradients that a rule sees are those of the whole step: summed over the micro-batches and
    the ranks, and unscaled under ``16-mixed``. They may hold values that are not finite, which a
    rule must leave in their parameters, so that the step is left out.

    A rule computes from what all ranks agree on: gradients, experts, and sums over ranks. What it
    keeps between steps is returned by :meth:`tensors`, and every checkpoint contains it.

    Example:
        >>> from dmole.curriculum.rules import GradientRule
        >>> class HalfRouters(GradientRule):
        ...     def apply(self, training):
        ...         for _, update in training.updates():
        ...             if update.shape.heads:
        ...                 update.router.grad.mul_(0.5)
        >>> HalfRouters().tensors()  # it has no state
        {}
    """

    @property
    def observes(self) -> bool:
        """Whether the rule reads the inputs of the linears in training."""
        return False

    def before_stage(self, training: Training) -> None:  # noqa: B027
        """Prepare for a stage: its experts are placed, distributed training is not set up yet.

        What a step needs goes on the device of the process, and what is computed from experts and
        weights is computed there, so that a resumed run computes alike.

        If a run resumes within a stage, the state and the experts are restored afterward.
        """

    def derived(self) -> list[Tensor]:
        """Return tensors that :meth:`before_stage` computed; all ranks take those of rank 0."""
        return []

    def observe(  # noqa: B027
        self, path: str, inputs: Tensor, probabilities: Tensor | None
    ) -> None:
        """Add up what a micro-batch shows of a linear, on this rank.

        Args:
            path: Full path of the linear.
            inputs: ``(M, in_features)`` inputs of its real tokens, float32, before dropout.
            probabilities: ``(M, N)`` probabilities of the router of its parallel experts; None
                without one.
        """

    def pending(self) -> list[Tensor]:
        """Return the sums of :meth:`observe` since the last step; they are added over the ranks.

        Order and shapes are the same on all ranks.
        """
        return []

    @abstractmethod
    def apply(self, training: Training) -> None:
        """Change the gradients of the trainable parameters in place."""

    def after_step(self, training: Training) -> None:  # noqa: B027
        """Use the sums of :meth:`pending`, now over all ranks, after the step was made."""

    def clear(self) -> None:  # noqa: B027
        """Set the sums of :meth:`pending` to zero, after each step, also one that is left out."""

    def after_stage(self, training: Training) -> None:  # noqa: B027
        """Store what later stages need of this stage; all ranks call it."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the state, without copies."""
        return {}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the result of :meth:`tensors`.

        Raises:
            ValueError: If a tensor is unknown or of a wrong shape.
        """
        if tensors:
            raise ValueError(f"{type(self).__name__} has no state, got {sorted(tensors)}")


def input_parameters(update: LoRAExpert) -> Iterator[nn.Parameter]:
    """Yield the trainable parameters that read the input of the linear, ``(rows, in_features)``."""
    for name in ("lora_a", "router"):
        parameter = getattr(update, name, None)
        if parameter is not None and parameter.requires_grad:
            yield parameter


def output_parameters(update: LoRAExpert) -> Iterator[nn.Parameter]:
    """Yield the trainable up-projections of an update, ``(out_features, rank)``."""
    for name, parameter in update.named_parameters():
        if name.startswith("lora_b") and parameter.requires_grad:
            yield parameter
