"""The contexts that the module receives: one for each stage, one for each evaluation pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self

    from dmole.allocation import Allocation
    from dmole.streams.stream import Stage

DEFAULT_ANSWER_TOKENS = 32
"""Maximum number of tokens of an answer to a prompt of an unknown task."""


@dataclass
class StageContext:
    """The experts and the data of a stage.

    Args:
        index: 1-based index of the stage; 0 before the first stage, when no expert trains.
        experts: Experts that train: that of the stage, then the one that all stages share.
        tasks: Tasks of the stage; samples of other tasks are replayed or belong to a neighboring
            stage.
        epochs: Passes over the data of the stage.
        allocation: Allocation of the stage's expert; None if an earlier stage made the expert.
        steps: Optimizer steps of the stage; 0 until the optimizer is made.
        update_scale: Factor on the learning rate, by modality; the default is 1.
        gate_sets: Samples that this process has trained on, by true task and gate set.
        observed: Whether a gradient rule reads the inputs of the linears in training.
    """

    index: int = 0
    experts: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    epochs: int = 1
    allocation: Allocation | None = None
    steps: int = 0
    update_scale: dict[str, float] = field(default_factory=dict)
    gate_sets: Counter[tuple[str, str]] = field(default_factory=Counter)
    observed: bool = False

    @classmethod
    def of(cls, stage: Stage, epochs: int, allocation: Allocation | None = None) -> Self:
        """Return the context of a stage."""
        return cls(stage.index, stage.experts, stage.tasks, epochs, allocation)

    @property
    def expert(self) -> str | None:
        """The expert of the stage, not the one that all stages share."""
        return self.experts[0] if self.experts else None


@dataclass(frozen=True)
class EvaluationPass:
    """The test samples that a pass answers, and the experts of each.

    Args:
        name: ``routed``: the router chooses the experts. ``oracle``: each sample gets the
            experts that its task was trained with.
        experts: Experts that may be used; None for all.
        gate_sets: Experts of each sample, best first, by ``task/split/id``; the router chooses
            the experts of samples that are not listed.
        weights: Weights of a sample's experts, in their order; samples that are not listed have a
            weight of 1 for each.
        digests: SHA-256 of each expert's tensors, of the settings of decoding, and of the weights.
        pending: Indices of the test samples that need an answer, by task; None for all.
        earlier_answers: Answers to pending samples from an earlier process, by sample.
        answer_lengths: Maximum number of tokens of an answer, by task.
        losses: Reconstruction losses of the test samples, by expert and true task.
    """

    name: str = "routed"
    experts: tuple[str, ...] | None = None
    gate_sets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    weights: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    pending: Mapping[str, Sequence[int]] | None = None
    earlier_answers: Mapping[str, str] = field(default_factory=dict)
    answer_lengths: Mapping[str, int] = field(default_factory=dict)
    losses: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)

    def order(self, keys: Sequence[str]) -> list[tuple[str, ...]] | None:
        """Return the planned experts of samples; None if a sample has no plan."""
        if not all(key in self.gate_sets for key in keys):
            return None
        return [self.gate_sets[key] for key in keys]

    def weights_of(self, keys: Sequence[str]) -> list[tuple[float, ...]]:
        """Return the weights of the planned experts of samples; empty where all are 1."""
        return [self.weights.get(key, ()) for key in keys]

    def answer_length(self, tasks: Sequence[str]) -> int:
        """Return the maximum number of tokens of any answer to samples of these tasks."""
        return max(self.answer_lengths.get(task, DEFAULT_ANSWER_TOKENS) for task in tasks)
