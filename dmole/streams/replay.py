"""Experience replay: samples of earlier tasks from a bounded buffer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from dmole.storage.seeds import derive_seed
from dmole.streams.draws import Draw, Indices, Inventory, Part, random_order, walk

MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Replay(Draw):
    """The stage's tasks, and samples of earlier tasks from a buffer.

    Args:
        past: Tasks of the earlier stages, in order.
        buffer_size: Maximum number of samples in the buffer, or ``None``.
        buffer_mb: Maximum size of the buffer in megabytes, or ``None``.
        share: Share of replayed samples in an epoch; ``None`` replays each sample once.
        seed: Seed of the buffer; ``None`` uses the seed of the data.
    """

    past: tuple[str, ...]
    buffer_size: int | None
    buffer_mb: float | None
    share: float | None
    seed: int | None

    def replayed(self, tasks: Sequence[str], data: Inventory, seed: int) -> list[Part]:
        """Return the samples of earlier tasks that the stage trains on again.

        Raises:
            ValueError: If no sample fits into the buffer, or the share is less than one sample.
        """
        if not self.past:
            return []
        buffer_seed = seed if self.seed is None else self.seed
        chosen = self._buffer(data, buffer_seed)
        if not any(len(indices) for indices in chosen):
            raise ValueError(
                f"no sample of {', '.join(self.past)} fits in a buffer of {self.buffer_mb} MB"
            )
        if self.share is not None:
            new = sum(data.train_size(name) * data.repeat(name) for name in tasks)
            count = replayed_count(new, self.share)
            if not count:
                raise ValueError(
                    f"share {self.share} of the {new} samples of {', '.join(tasks)} is less than "
                    "one replayed sample"
                )
            order = random_order(sum(map(len, chosen)), buffer_seed, "share", len(self.past))
            chosen = take(chosen, walk(order, 0, count))
        return [
            Part(name, indices)
            for name, indices in zip(self.past, chosen, strict=True)
            if len(indices)
        ]

    def _buffer(self, data: Inventory, seed: int) -> list[Indices]:
        """Return the indices of the buffered samples of each past task."""
        keys = [random_keys(data.train_size(name), seed, name) for name in self.past]
        if self.buffer_size is not None:
            return reservoir(keys, [np.ones(len(key), np.int64) for key in keys], self.buffer_size)
        assert self.buffer_mb is not None  # the stream checks that one limit is given
        costs = [data.stored_bytes(name) for name in self.past]
        return reservoir(keys, costs, self.buffer_mb * MEGABYTE)


def random_keys(size: int, seed: int, task: str) -> npt.NDArray[np.float64]:
    """Return a random number in [0, 1) for each sample of a task, ``(N,)``."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "replay", task))
    keys: npt.NDArray[np.float64] = torch.rand(
        size, generator=generator, dtype=torch.float64
    ).numpy()
    return keys


def reservoir(
    keys: Sequence[npt.NDArray[np.float64]], costs: Sequence[Indices], limit: float
) -> list[Indices]:
    r"""Return the samples that a buffer of bounded cost holds at the end of a stream.

    The samples are those with the smallest keys,

    .. math:: B = \{ i : \sum_{j:\, u_j \le u_i} c_j \le C \}

    for independent uniform keys :math:`u`, costs :math:`c` and limit :math:`C`; a single
    sample that costs more than the limit is skipped. With unit costs :math:`B` is a uniform
    draw without replacement. A later task only increases the sums, so a dropped sample
    never returns: a learner that sees the stream once can maintain this buffer.

    Args:
        keys: Keys of the samples of each task, ``(N,)``.
        costs: Costs of the samples of each task, ``(N,)``, at least 0.
        limit: Maximum cost of the buffer.

    Returns:
        Indices of each task's samples in the buffer, ascending.

    Source:
        Vitter, 1985, https://doi.org/10.1145/3147.3165, draws from the same distribution
        with algorithm R, which replaces entries sequentially; random keys make it a pure function.

    Example:
        >>> ones = np.ones(2, np.int64)
        >>> buffer = reservoir([np.array([0.5, 0.1]), np.array([0.3, 0.9])], [ones, ones], 2)
        >>> [indices.tolist() for indices in buffer]
        [[1], [0]]
    """
    joined = np.concatenate(costs)
    order = np.argsort(np.concatenate(keys), kind="stable")
    order = order[joined[order] <= limit]
    kept = np.sort(order[: np.searchsorted(np.cumsum(joined[order]), limit, side="right")])
    starts = np.cumsum([0, *map(len, keys)])
    bounds = np.searchsorted(kept, starts)
    return [kept[bounds[i] : bounds[i + 1]] - starts[i] for i in range(len(keys))]


def replayed_count(new: int, share: float) -> int:
    """Return the number of replayed samples for a share of an epoch, rounded.

    Args:
        new: Samples that are not replayed.
        share: Share of replayed samples in all samples, in (0, 1).

    Example:
        >>> replayed_count(90, 0.1)
        10
    """
    return round(new * share / (1 - share))


def take(groups: Sequence[Indices], positions: Indices) -> list[Indices]:
    """Return the entries at positions of the concatenated groups, by group.

    Example:
        >>> [g.tolist() for g in take([np.array([4, 6]), np.array([1])], np.array([2, 0, 2]))]
        [[4], [1, 1]]
    """
    owner = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    positions = np.sort(positions)
    entries = np.concatenate(groups)[positions]
    return [entries[owner[positions] == group] for group in range(len(groups))]
