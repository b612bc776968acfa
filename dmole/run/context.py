"""What the module is given for a stage and for an evaluation pass, each made once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from dmole.allocation import Allocation
    from dmole.streams.stream import Stage

DEFAULT_ANSWER_TOKENS = 32
"""Most tokens of an answer to a prompt of an unknown task."""


@dataclass
class StageContext:
    """What trains in a stage, and on what.

    Args:
        index: 1-based number of the stage; 0 before the first one, when no expert trains.
        experts: Experts that train: the stage's first, then the one that all stages share.
        tasks: Tasks of the stage; samples of others are replayed or of a neighbor.
        epochs: Passes over the data of the stage.
        allocation: The plan that placed the stage's expert in this stage, None for an older one.
        steps: Optimizer steps of the stage; 0 until the optimizer is made.
        update_scale: Factor on the learning rate, by modality; 1 where there is none.
    """

    index: int = 0
    experts: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    epochs: int = 1
    allocation: Allocation | None = None
    steps: int = 0
    update_scale: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, stage: Stage, epochs: int, allocation: Allocation | None = None) -> Self:
        """Return the context of a stage."""
        return cls(stage.index, stage.experts, stage.tasks, epochs, allocation)

    @property
    def expert(self) -> str | None:
        """The stage's expert, without the one that all stages share."""
        return self.experts[0] if self.experts else None


@dataclass(frozen=True)
class EvaluationPass:
    """Which test samples a pass answers, and with which experts.

    Args:
        name: ``routed``: the router chooses the experts. ``oracle``: each sample gets the
            experts that its task was trained with.
        experts: Experts that may be used; None for all.
        gate_sets: Experts of each sample, best first, by ``task/split/id``; the router decides
            on samples that are not named.
        digests: SHA-256 of each expert's tensors.
        pending: For each task the indices of the test samples that need an answer; None for all.
        known: Answers of pending samples from an earlier process, by sample.
        answer_lengths: Most tokens of an answer, by task.
        losses: Reconstruction losses of the test samples, by expert and true task.
    """

    name: str = "routed"
    experts: tuple[str, ...] | None = None
    gate_sets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    pending: Mapping[str, Sequence[int]] | None = None
    known: Mapping[str, str] = field(default_factory=dict)
    answer_lengths: Mapping[str, int] = field(default_factory=dict)
    losses: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)

    def order(self, keys: Sequence[str]) -> list[tuple[str, ...]] | None:
        """Return the planned experts of samples, None where one has no plan."""
        if not all(key in self.gate_sets for key in keys):
            return None
        return [self.gate_sets[key] for key in keys]

    def answer_length(self, tasks: Sequence[str]) -> int:
        """Return the most tokens of any answer to samples of these tasks."""
        return max(self.answer_lengths.get(task, DEFAULT_ANSWER_TOKENS) for task in tasks)
