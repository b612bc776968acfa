"""Draws of training samples for a stage: task names and indices, no samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from dmole.storage.seeds import derive_seed

Indices = npt.NDArray[np.int64]


class Inventory(Protocol):
    """The facts about the training data that a draw may use."""

    def train_size(self, name: str) -> int:
        """Return the number of a task's training samples."""
        ...

    def repeat(self, name: str) -> int:
        """Return the number of times each training sample of a task occurs in an epoch."""
        ...

    def stored_bytes(self, name: str) -> Indices:
        """Return the size in bytes of each training sample of a task, ``(N,)``."""
        ...


@dataclass(frozen=True)
class Rewording:
    """Samples in another style of answer; see `dmole.data.answer_styles`.

    Args:
        styles: Style of each sample that is reworded, by index.
        seed: Seed of the wording.
    """

    styles: Mapping[int, str]
    seed: int


@dataclass(frozen=True, eq=False)
class Part:
    """Training samples of one task.

    Args:
        task: Name of the task.
        indices: Indices into its training data, in the order drawn, with repeats. ``None`` stands
            for all samples, once each.
        rewording: Which of the task's samples are in another style of answer.
    """

    task: str
    indices: Indices | None = None
    rewording: Rewording | None = None


@dataclass(frozen=True)
class Draw:
    """The default rule: all samples of the stage's tasks. Other rules derive from it.

    A draw is a function of its fields, of sizes and of seeds. It has no state, so a resumed run
    draws the same samples again.
    """

    def arriving(self, tasks: Sequence[str], data: Inventory, seed: int) -> list[Part]:
        """Return the samples that a stage uses as the data of its tasks.

        Proxy scores and the router's fit use the same samples, since a learner without task
        labels cannot separate them.

        Args:
            tasks: Tasks of the stage, or some of them.
            data: The training data.
            seed: Seed of the data, for rules without a seed.
        """
        return [Part(name) for name in tasks for _ in range(data.repeat(name))]

    def scored(self, tasks: Sequence[str]) -> list[tuple[str, ...]]:
        """Return the groups of tasks whose arriving samples are scored apart from each other.

        Args:
            tasks: Tasks of the stage.
        """
        return [(name,) for name in tasks]

    def replayed(self, tasks: Sequence[str], data: Inventory, seed: int) -> list[Part]:
        """Return samples of other data: of earlier stages, again, or general ones.

        Args:
            tasks: Tasks of the stage.
            data: The training data.
            seed: Seed of the data, for rules without a seed.
        """
        return []


def random_order(size: int, *parts: object) -> Indices:
    """Return the indices below a size in a random order, seeded by the parts."""
    generator = torch.Generator().manual_seed(derive_seed(*parts))
    order: Indices = torch.randperm(size, generator=generator).numpy()
    return order


def walk(order: Indices, start: int, count: int) -> Indices:
    """Return ``count`` entries of an order from ``start`` on, cyclically.

    No entry repeats before all entries have occurred.

    Example:
        >>> walk(np.array([7, 3, 5]), 2, 5).tolist()
        [5, 7, 3, 5, 7]
    """
    return order[(start + np.arange(count)) % len(order)]
