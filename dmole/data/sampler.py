"""Assigns samples to batches and ranks, determined by a seed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Sampler

from dmole.data.sample import Sample
from dmole.storage.seeds import derive_seed

Indices = npt.NDArray[np.int64]
Lengths = Sequence[int] | npt.NDArray[np.int32]

_CHUNK = 50  # batches per chunk; sorting by length within a chunk keeps the epoch shuffled
_LENGTH_STEP = 128  # characters, about 32 tokens: this much padding costs little
_IMAGE_LENGTH = 1024  # length steps per image, so that the number of images outweighs the text


class OrderRule(NamedTuple):
    """What the order of an epoch depends on, besides stage, epoch and number of ranks.

    Args:
        batch_size: Samples per batch and rank.
        seed: Seed of the run.
        grouped: Whether a window holds samples of similar length.
        window: Batches of an optimizer step.
        max_tokens: Most padded tokens of a batch; 0 if it has a number of samples instead.
    """

    batch_size: int
    seed: int
    grouped: bool
    window: int
    max_tokens: int = 0


class Used(NamedTuple):
    """Batches of an epoch that were taken by one rule.

    Args:
        rule: The rule.
        batches: Number of batches per rank.
    """

    rule: OrderRule
    batches: int


class TrainBatchSampler(Sampler[list[int]]):
    """Batches of indices, shuffled in each epoch and divided among ranks.

    The order depends on (seed, stage, epoch) alone, never on a global generator. All ranks have
    the same number of batches of the same sizes. If the samples do not divide evenly, some samples
    of the last step are repeated, so that no rank waits for another. Apart from these repeats, a
    step is the same for any number of ranks and of accumulated batches with the same product of
    batch size, ranks and accumulated batches.

    Args:
        lengths: Approximate length of each sample; a step holds samples of similar length.
            ``None`` keeps the shuffled order. They may be given by a function, which is called
            only if an order needs them.
        size: Number of samples; by default the number of lengths.
        batch_size: Samples per batch and rank.
        seed: Seed of the run.
        stage: Number of the stage.
        rank: Rank of this process.
        num_replicas: Number of ranks.
        window: Batches whose gradients an optimizer step accumulates.
        grouped: Whether the lengths are used; by default if there are any.

    Attributes:
        epoch: Epoch of the next pass; see `set_epoch`.
        start: Number of batches to skip; set by the loader when it resumes.
        used: Batches that other rules have taken of the epoch; a pass leaves out their samples.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        lengths: Lengths | Callable[[], Lengths] | None = None,
        seed: int = 0,
        stage: int = 0,
        rank: int = 0,
        num_replicas: int = 1,
        window: int = 1,
        grouped: bool | None = None,
    ) -> None:
        if size < 1 or batch_size < 1:
            raise ValueError(f"size {size} and batch_size {batch_size} must be at least 1")
        if window < 1:
            raise ValueError(f"window must be at least 1, got {window}")
        if lengths is not None and not callable(lengths) and len(lengths) != size:
            raise ValueError(f"there are {len(lengths)} lengths for {size} samples")
        if not 0 <= rank < num_replicas:
            raise ValueError(f"rank {rank} is not below num_replicas {num_replicas}")
        self._size = size
        self._lengths = lengths
        self.stage = stage
        self._rank = rank
        self._num_replicas = num_replicas
        grouped = lengths is not None if grouped is None else grouped
        self.rule = OrderRule(batch_size, seed, grouped, window)
        self.epoch = 0
        self.start = 0
        self.used: tuple[Used, ...] = ()
        self.sampler = self  # Lightning calls `set_epoch` on this attribute

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass; called by Lightning."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch, also when an epoch is resumed."""
        return self.batches_of(self._size)

    def batches_of(self, samples: int) -> int:
        """Return the number of batches per rank of a number of samples."""
        return math.ceil(math.ceil(samples / self._num_replicas) / self.rule.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the batches of this rank, starting at `start`."""
        for step in itertools.islice(self._batches(self.rule, self.rest()), self.start, None):
            batch = step.tolist()
            missing = -len(batch) % self._num_replicas  # nonzero only in the last step
            padded = batch + (batch * self._num_replicas)[:missing]
            yield padded[self._rank :: self._num_replicas]

    @property
    def repeats(self) -> bool:
        """Whether the last sample of this rank's last batch repeats a sample of another rank."""
        return 0 < len(self.rest()) % self._num_replicas <= self._rank

    def rest(self) -> Indices:
        """Return the samples of the epoch that no other rule has taken, ascending."""
        rest = np.arange(self._size)
        for rule, batches in self.used:
            taken = list(itertools.islice(self._batches(rule, rest), batches))
            rest = np.setdiff1d(rest, np.concatenate(taken)) if taken else rest
        return rest

    def _batches(self, rule: OrderRule, samples: Indices) -> Iterator[Indices]:
        """Yield the batches of all ranks together."""
        width = rule.batch_size * self._num_replicas
        span = width * rule.window
        order, steps = self._order(rule, samples, span)
        for step in steps:
            window = order[int(step) * span : (int(step) + 1) * span]
            for begin in range(0, len(window), width):
                yield window[begin : begin + width]

    def _order(self, rule: OrderRule, samples: Indices, span: int) -> tuple[Indices, Indices]:
        """Return the samples, grouped by steps of ``span``, and the order of the steps.

        Lists of integers would take four times the memory of these arrays.
        """
        seed = derive_seed(rule.seed, self.stage, self.epoch)
        generator = torch.Generator().manual_seed(seed)
        order = samples[torch.randperm(len(samples), generator=generator).numpy()]
        steps = np.arange(math.ceil(len(order) / span))
        if not rule.grouped:
            return order, steps
        lengths = self._known_lengths()
        for begin in range(0, len(order), span * _CHUNK):
            chunk = order[begin : begin + span * _CHUNK]
            chunk[:] = chunk[np.argsort(lengths[chunk], kind="stable")]
        # the last step, which may be smaller, stays last; the others are shuffled
        head = torch.randperm(len(steps) - 1, generator=generator).numpy()
        return order, np.concatenate([head, steps[-1:]])

    def _known_lengths(self) -> npt.NDArray[np.int32]:
        if self._lengths is None:
            raise ValueError("an order by length needs the lengths of the samples")
        if callable(self._lengths):
            self._lengths = self._lengths()
        return np.asarray(self._lengths)


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


def endless_batches(
    indices: range, batch_size: int, seed: int, tasks: Sequence[str]
) -> Iterator[list[int]]:
    """Yield random batches of all samples, again and again, each time in another order.

    Args:
        indices: The samples.
        batch_size: Samples per batch; the last one of an order may be smaller.
        seed: Seed of the orders.
        tasks: Tasks of the samples, part of the seed.
    """
    for number in itertools.count():
        again = derive_seed(derive_seed(seed, "delta", number), *tasks)
        for batch in random_batches(len(indices), batch_size, 1.0, again):
            yield [indices[place] for place in batch]


def approximate_length(sample: Sample) -> int:
    """Return a number that grows with the tokens of a sample, without reading its images.

    The number is deliberately coarse. With exact lengths, samples that differ only in a short
    answer would be sorted by that answer, and a batch would hold only equal answers.
    """
    characters = sum(len(turn.text) for turn in sample.turns)
    return characters // _LENGTH_STEP + _IMAGE_LENGTH * len(sample.images)
