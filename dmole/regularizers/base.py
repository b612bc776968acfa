"""Base class of the regularizers: an extra loss term, with state that outlasts a stage."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from dmole.transfer import to_device

if TYPE_CHECKING:
    from dmole.data import Batch
    from dmole.data.labels import Targets
    from dmole.experts import ExpertLibrary, Gates
    from dmole.models.answer_head import AnswerOutput


@dataclass(frozen=True)
class Step:
    """One training step, as input of a regularizer.

    Args:
        library: All experts; those in training require gradients.
        experts: Names of the experts in training.
        stage_tasks: Tasks of the stage; samples of other tasks are replayed.
        batch: The samples, with labels.
        labels: ``(B, T)`` token ids, -100 outside the answers.
        gates: Experts of each sample, with the records of mixing linears; None without experts.
        targets: The ``M`` answer tokens and their samples.
        output: Output of the model for the answer tokens.
        forward: Computes :attr:`logits` again, with the experts' values at the time of the call.
        embed: Returns the router embeddings of the samples, ``(B, D)``.
        number: Optimizer steps since the start of the sequence.
        continued: Earlier versions of the expert in training, which it replaces.
    """

    library: ExpertLibrary
    experts: tuple[str, ...]
    stage_tasks: tuple[str, ...]
    batch: Batch
    labels: Tensor
    gates: Gates | None
    targets: Targets
    output: AnswerOutput
    forward: Callable[[], Tensor]
    embed: Callable[[], Tensor]
    number: int
    continued: tuple[str, ...] = ()

    @property
    def logits(self) -> Tensor:
        """Logits of the answer tokens, ``(M, V)``, with their graph to the experts in training.

        Row ``i`` predicts ``targets.tokens[i]``, a token of sample ``targets.samples[i]``. Long
        answers are not split into chunks for it, so reading it can take much memory.
        """
        return self.output.logits

    def zero(self) -> Tensor:
        """Return a scalar zero, float32, on the device of the batch."""
        return self.labels.new_zeros((), dtype=torch.float32)


@dataclass(frozen=True)
class StageView:
    """A stage, as input of a regularizer before and after its training.

    Args:
        library: All experts.
        experts: Names of the experts that train in the stage.
        index: 1-based number of the stage.
        tasks: Tasks of the stage.
        all_tasks: Tasks of the whole sequence, in order.
        samples: Returns batches of a random subset of the stage's training samples, given its
            size and the batch size; the subset is split over the ranks. Where all ranks must make
            the same passes, batches without a real sample follow, whose gradients are zero.
        step: Returns loss and step of a batch, with the current values of the experts.
    """

    library: ExpertLibrary
    experts: tuple[str, ...]
    index: int
    tasks: tuple[str, ...]
    all_tasks: tuple[str, ...]
    samples: Callable[[int, int], Iterator[Batch]]
    step: Callable[[Batch], tuple[Tensor, Step]]

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return the trainable parameters of the stage, by ``<expert>/<linear>.<tensor>``."""
        return training_parameters(self.library, self.experts)


class Regularizer(nn.Module, ABC):
    """An extra term of the training loss.

    Parameters registered on it train with the experts. Further state is returned by
    :meth:`extra_tensors`. Every checkpoint contains both.

    Example:
        >>> import torch
        >>> from dmole.regularizers import Regularizer
        >>> class SmallUpdate(Regularizer):
        ...     def forward(self, step):
        ...         experts = [e for name in step.experts for _, e in step.library.experts(name)]
        ...         return 0.01 * torch.stack([e.lora_b.square().sum() for e in experts]).sum()
        >>> SmallUpdate().tensors()  # it has neither parameters nor state
        {}
    """

    mean_over: Literal["batches", "tokens", "samples", "inputs", "steps"] = "batches"
    """What the term is a mean over. An optimizer step may have several micro-batches, on one or
    more ranks; they are weighed by their numbers of answer ``tokens``, ``samples``, or ``inputs``:
    tokens of the language model without padding. ``batches`` weighs all alike: the definition of a
    term that is no mean, such as a product of means. ``steps`` is for a term of parameters alone,
    which all micro-batches share: each rank computes it once in an optimizer step."""
    per_token: bool = False
    """Short for ``mean_over = "tokens"``."""
    passes: Literal["none", "alike", "own"] = "none"
    """Passes through the base model that the term makes in a step. ``alike`` are the same on all
    ranks. With ``own`` each rank decides, which excludes a base model that is split over ranks."""
    records: bool = False
    """Whether the regularizer reads the records of mixing linears."""

    def before_stage(self, stage: StageView) -> None:
        """Prepare for a stage: its experts are added, distributed training is not set up yet."""

    @abstractmethod
    def forward(self, step: Step) -> Tensor:
        """Return the term times its coefficient, a scalar; zero where it does not apply."""

    def after_step(self) -> None:
        """Update state between two optimizer steps; all ranks call it."""

    def after_stage(self, stage: StageView) -> None:
        """Store the state that later stages need of this stage; all ranks call it."""

    def extra_tensors(self) -> dict[str, Tensor]:
        """Return the state beyond the parameters."""
        return {}

    def load_extra_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the result of :meth:`extra_tensors`.

        Raises:
            ValueError: If a tensor is unknown.
        """
        if tensors:
            raise ValueError(f"{type(self).__name__} has no extra tensors, got {sorted(tensors)}")

    def tensors(self) -> dict[str, Tensor]:
        """Return parameters and further state, without copies."""
        parameters = {f"parameter/{name}": p.detach() for name, p in self.named_parameters()}
        return parameters | {
            f"extra/{name}": tensor for name, tensor in self.extra_tensors().items()
        }

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the result of :meth:`tensors`.

        Raises:
            ValueError: If something is missing, unknown or of another shape.
        """
        kind = type(self).__name__
        parts: dict[str, dict[str, Tensor]] = {"parameter": {}, "extra": {}}
        for key, tensor in tensors.items():
            part, _, name = key.partition("/")
            parts[part][name] = tensor
        self.build_parameters(parts["parameter"])
        current = dict(self.named_parameters())
        for name in sorted(current.keys() ^ parts["parameter"].keys()):
            raise ValueError(f"{kind}: parameter {name} is missing or unknown")
        for name, parameter in current.items():
            if parameter.shape != parts["parameter"][name].shape:
                raise ValueError(f"{kind}: parameter {name} has another shape")
            parameter.data.copy_(parts["parameter"][name])
        self.load_extra_tensors(parts["extra"])

    def build_parameters(self, saved: Mapping[str, Tensor]) -> None:
        """Create the parameters of a checkpoint, for regularizers that create them in a stage."""


def on_their_devices(
    tensors: Mapping[str, Tensor], parameters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return tensors on the devices of the parameters of the same names.

    A term copies its state once in a stage: in a training step the copies would take longer than
    what is computed with them.
    """
    return {name: to_device(value, parameters[name].device) for name, value in tensors.items()}


def training_parameters(library: ExpertLibrary, experts: Sequence[str]) -> dict[str, nn.Parameter]:
    """Return the trainable parameters of experts, by ``<expert>/<linear>.<tensor>``."""
    return {
        f"{name}/{path}.{key}": parameter
        for name in experts
        for path, expert in library.parts(name)
        for key, parameter in expert.named_parameters()
        if parameter.requires_grad
    }
