"""What a regularizer is: an extra term of the training loss, with what it keeps between stages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from dmole.data import Batch
    from dmole.experts import ExpertLibrary, Gates


@dataclass(frozen=True)
class Step:
    """One training step as a regularizer sees it.

    Args:
        library: All experts; those that train have gradients on.
        experts: Names of the experts that train.
        stage_tasks: Tasks of the stage; samples of others are replayed.
        batch: The samples, with labels.
        labels: ``(B, T)`` token ids, -100 where no answer is.
        gates: Experts of each sample, and what mixing linears recorded; None without any.
        logits: ``(B, T, V)`` of the experts in training, with their graph.
        forward: Returns such logits again, under the experts' values at the time.
        embed: Returns what the router sees of the samples, ``(B, D)``.
        number: Optimizer steps since the sequence began.
    """

    library: ExpertLibrary
    experts: tuple[str, ...]
    stage_tasks: tuple[str, ...]
    batch: Batch
    labels: Tensor
    gates: Gates | None
    logits: Tensor
    forward: Callable[[], Tensor]
    embed: Callable[[], Tensor]
    number: int


@dataclass(frozen=True)
class StageView:
    """A stage as a regularizer sees it before and after its training.

    Args:
        library: All experts.
        experts: Names of the experts that train in the stage.
        index: 1-based number of the stage.
        tasks: Tasks of the stage.
        all_tasks: Tasks of the whole sequence, in order.
        samples: Returns batches of a random part of the stage's training samples, given their
            number and the size of a batch; ranks share them out.
        step: Makes the step of a batch, with the experts as they are.
    """

    library: ExpertLibrary
    experts: tuple[str, ...]
    index: int
    tasks: tuple[str, ...]
    all_tasks: tuple[str, ...]
    samples: Callable[[int, int], Iterator[Batch]]
    step: Callable[[Batch], tuple[Tensor, Step]]

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return what trains in the stage, by ``<expert>/<linear>.<tensor>``."""
        return training_parameters(self.library, self.experts)


class Regularizer(nn.Module, ABC):
    """An extra term of the training loss.

    Parameters registered on it train with the experts. What it must remember beyond them it hands
    out in :meth:`extra_tensors`; both travel in every checkpoint.

    Example:
        >>> import torch
        >>> from dmole.regularizers import Regularizer
        >>> class SmallUpdate(Regularizer):
        ...     def forward(self, step):
        ...         experts = [e for name in step.experts for _, e in step.library.experts(name)]
        ...         return 0.01 * torch.stack([e.lora_b.square().sum() for e in experts]).sum()
        >>> SmallUpdate().tensors()  # nothing to save: it neither trains nor remembers
        {}
    """

    per_token: bool = False
    """Whether the term is a mean over the batch's answer tokens, by which ranks are weighed."""
    records: bool = False
    """Whether it reads what mixing linears record."""

    def before_stage(self, stage: StageView) -> None:
        """Prepare for a stage whose experts are in place; distributed training is not yet set."""

    @abstractmethod
    def forward(self, step: Step) -> Tensor:
        """Return the term, a scalar with its coefficient; zero where it does not apply."""

    def after_step(self) -> None:
        """Act between two training batches; all ranks call it."""

    def after_stage(self, stage: StageView) -> None:
        """Remember what the coming stages need of the one just trained; all ranks call it."""

    def extra_tensors(self) -> dict[str, Tensor]:
        """Return what it remembers beside its parameters."""
        return {}

    def load_extra_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`extra_tensors` returned.

        Raises:
            ValueError: If there is anything that it does not know.
        """
        if tensors:
            raise ValueError(f"{type(self).__name__} remembers nothing, got {sorted(tensors)}")

    def tensors(self) -> dict[str, Tensor]:
        """Return parameters and all else it remembers, uncopied."""
        own = {f"parameter/{name}": p.detach() for name, p in self.named_parameters()}
        return own | {f"extra/{name}": tensor for name, tensor in self.extra_tensors().items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`tensors` returned.

        Raises:
            ValueError: If something is missing, unknown or of another shape.
        """
        kind = type(self).__name__
        parts: dict[str, dict[str, Tensor]] = {"parameter": {}, "extra": {}}
        for key, tensor in tensors.items():
            part, _, name = key.partition("/")
            parts[part][name] = tensor
        self.build_parameters(parts["parameter"])
        own = dict(self.named_parameters())
        for name in sorted(own.keys() ^ parts["parameter"].keys()):
            raise ValueError(f"{kind}: parameter {name} is missing or unknown")
        for name, parameter in own.items():
            if parameter.shape != parts["parameter"][name].shape:
                raise ValueError(f"{kind}: parameter {name} has another shape")
            parameter.data.copy_(parts["parameter"][name])
        self.load_extra_tensors(parts["extra"])

    def build_parameters(self, saved: Mapping[str, Tensor]) -> None:
        """Make the parameters of a checkpoint where they come into being in the first stage."""


def training_parameters(library: ExpertLibrary, experts: Sequence[str]) -> dict[str, nn.Parameter]:
    """Return the parameters of experts that gradients reach, by ``<expert>/<linear>.<tensor>``."""
    return {
        f"{name}/{path}.{key}": parameter
        for name in experts
        for path, expert in library.experts(name)
        for key, parameter in expert.named_parameters()
        if parameter.requires_grad
    }
