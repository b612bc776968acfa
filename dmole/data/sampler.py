"""Assigns samples to batches and ranks, determined by a seed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Sampler

from dmole.data.sample import Sample
from dmole.storage.seeds import derive_seed

_Indices = npt.NDArray[np.int64]

_CHUNK = 50  # batches per chunk; sorting by length within a chunk keeps the epoch shuffled
_LENGTH_STEP = 128  # characters, about 32 tokens: this much padding costs little
_IMAGE_LENGTH = 1024  # length steps per image, so that the number of images outweighs the text


class TrainBatchSampler(Sampler[list[int]]):
    """Batches of indices, shuffled in each epoch and divided among ranks.

    The order depends on (seed, stage, epoch) alone, never on a global generator. All ranks have
    the same number of batches of the same sizes. If the samples do not divide evenly, some samples
    of the last step are repeated, so that no rank waits for another. Apart from these repeats, a
    step is the same for any number of ranks with the same global batch.

    Args:
        lengths: Approximate length of each sample; a batch holds samples of similar length.
            ``None`` keeps the shuffled order.
        size: Number of samples; by default the number of lengths.
        batch_size: Samples per batch and rank.
        seed: Seed of the run.
        stage: Number of the stage.
        rank: Rank of this process.
        num_replicas: Number of ranks.

    Attributes:
        epoch: Epoch of the next pass; see `set_epoch`.
        start: Number of batches to skip; set by the loader when it resumes.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        lengths: Sequence[int] | npt.NDArray[np.int32] | None = None,
        seed: int = 0,
        stage: int = 0,
        rank: int = 0,
        num_replicas: int = 1,
    ) -> None:
        if size < 1 or batch_size < 1:
            raise ValueError(f"size {size} and batch_size {batch_size} must be at least 1")
        if lengths is not None and len(lengths) != size:
            raise ValueError(f"there are {len(lengths)} lengths for {size} samples")
        if not 0 <= rank < num_replicas:
            raise ValueError(f"rank {rank} is not below num_replicas {num_replicas}")
        self._size = size
        self._batch_size = batch_size
        self._lengths = None if lengths is None else np.asarray(lengths)
        self._seed = seed
        self.stage = stage
        self._rank = rank
        self._num_replicas = num_replicas
        self.epoch = 0
        self.start = 0
        self.sampler = self  # Lightning calls `set_epoch` on this attribute

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass; called by Lightning."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch, also when an epoch is resumed."""
        return math.ceil(math.ceil(self._size / self._num_replicas) / self._batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the batches of this rank, starting at `start`."""
        order, steps = self._order()
        width = self._batch_size * self._num_replicas
        for index in steps[self.start :]:
            begin = int(index) * width
            step = order[begin : begin + width].tolist()
            missing = -len(step) % self._num_replicas  # nonzero only in the last step
            padded = step + (step * self._num_replicas)[:missing]
            yield padded[self._rank :: self._num_replicas]

    @property
    def repeats(self) -> bool:
        """Whether the last sample of this rank's last batch repeats a sample of another rank."""
        return 0 < self._size % self._num_replicas <= self._rank

    def _order(self) -> tuple[_Indices, _Indices]:
        """Return the samples, grouped by step, and the order of the steps.

        Lists of integers would take four times the memory of these arrays.
        """
        generator = torch.Generator().manual_seed(derive_seed(self._seed, self.stage, self.epoch))
        order = torch.randperm(self._size, generator=generator).numpy()
        width = self._batch_size * self._num_replicas
        steps = np.arange(math.ceil(len(order) / width))
        if self._lengths is None:
            return order, steps
        for begin in range(0, len(order), width * _CHUNK):
            chunk = order[begin : begin + width * _CHUNK]
            chunk[:] = chunk[np.argsort(self._lengths[chunk], kind="stable")]
        # the last step, which may be smaller, stays last; the others are shuffled
        head = torch.randperm(len(steps) - 1, generator=generator).numpy()
        return order, np.concatenate([head, steps[-1:]])


def split_batches(
    indices: Sequence[int], batch_size: int, rank: int = 0, num_replicas: int = 1
) -> list[list[int]]:
    """Return one rank's batches of a sequence, without repeats; a rank may have fewer.

    Args:
        indices: The sequence to divide.
        batch_size: Indices per batch.
        rank: Rank of this process.
        num_replicas: Number of ranks.

    Example:
        >>> split_batches(range(5), 2, rank=1, num_replicas=2)
        [[1, 3]]
    """
    share = list(indices[rank::num_replicas])
    return [share[begin : begin + batch_size] for begin in range(0, len(share), batch_size)]


def random_batches(size: int, batch_size: int, fraction: float, seed: int) -> list[list[int]]:
    """Return random batches that cover a fraction of the samples, at least one.

    Args:
        size: Number of samples.
        batch_size: Samples per batch.
        fraction: Fraction of the batches, rounded up, in (0, 1].
        seed: Seed of the draw.

    Raises:
        ValueError: If the fraction is out of range.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], got {fraction}")
    generator = torch.Generator().manual_seed(seed)
    count = math.ceil(fraction * math.ceil(size / batch_size))
    order = torch.randperm(size, generator=generator)[: count * batch_size]
    return split_batches(order.tolist(), batch_size)


def approximate_length(sample: Sample) -> int:
    """Return a number that grows with the tokens of a sample, without reading its images.

    The number is deliberately coarse. With exact lengths, samples that differ only in a short
    answer would be sorted by that answer, and a batch would hold only equal answers.
    """
    characters = sum(len(turn.text) for turn in sample.turns)
    return characters // _LENGTH_STEP + _IMAGE_LENGTH * len(sample.images)
