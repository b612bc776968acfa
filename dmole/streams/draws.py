"""Which training samples a stage draws: names and indices, no samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from dmole.storage.seeds import derive_seed

Indices = npt.NDArray[np.int64]


class Inventory(Protocol):
    """What a draw may know of the training data."""

    def train_size(self, name: str) -> int:
        """Return the number of a task's training samples."""
        ...

    def repeat(self, name: str) -> int:
        """Return how often each training sample of a task occurs in an epoch."""
        ...

    def stored_bytes(self, name: str) -> Indices:
        """Return the bytes that each training sample of a task takes, ``(N,)``."""
        ...


@dataclass(frozen=True, eq=False)
class Part:
    """Training samples of one task.

    Args:
        task: The task.
        indices: Positions in its training data, in the order drawn; one may come more than once.
            ``None`` stands for all, once each.
    """

    task: str
    indices: Indices | None = None


@dataclass(frozen=True)
class Draw:
    """All of the stage's own tasks and nothing else; other rules derive from it.

    A draw is a function of its fields, of sizes and of seeds. It has no state, so a resumed run
    draws what it drew before.
    """

    def arriving(self, tasks: Sequence[str], data: Inventory, seed: int) -> list[Part]:
        """Return what a stage takes for the data of its tasks.

        Proxy scores and router are made from it too: a learner without task labels would not
        know better.

        Args:
            tasks: Tasks of the stage, or some of them.
            data: The training data.
            seed: Seed of the data, for rules that have none of their own.
        """
        return [Part(name) for name in tasks for _ in range(data.repeat(name))]

    def replayed(self, tasks: Sequence[str], data: Inventory, seed: int) -> list[Part]:
        """Return samples of earlier stages that the stage trains on again.

        Args:
            tasks: Tasks of the stage.
            data: The training data.
            seed: Seed of the data, for rules that have none of their own.
        """
        return []


def random_order(size: int, *parts: object) -> Indices:
    """Return the numbers below a size in an order that follows from the parts of a seed."""
    generator = torch.Generator().manual_seed(derive_seed(*parts))
    order: Indices = torch.randperm(size, generator=generator).numpy()
    return order


def walk(order: Indices, start: int, count: int) -> Indices:
    """Return so many entries of an order from a place on, beginning anew where it ends.

    Nothing comes a second time before everything has come once.

    Example:
        >>> walk(np.array([7, 3, 5]), 2, 5).tolist()
        [5, 7, 3, 5, 7]
    """
    return order[(start + np.arange(count)) % len(order)]
