"""Batches of test samples whose prompts are of similar length, so that little is padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dmole.data.sample import Sample
from dmole.data.sampler import split_batches

CountTokens = Callable[[Sequence[int]], list[int]]
"""Returns the tokens of the prompts of samples, given their indices."""


def evaluation_batches(
    samples: Sequence[Sample],
    indices: Sequence[int],
    batch_size: int,
    rank: int = 0,
    num_replicas: int = 1,
    tokens: tuple[int, int, CountTokens] | None = None,
) -> list[list[int]]:
    """Return one rank's batches, without repeats; those with the longest prompts come first.

    They depend on the arguments alone, so a pass that is resumed has the same batches. Memory is
    short in the first batch if it is short at all.

    Args:
        samples: The test samples of a task.
        indices: Indices of those to answer.
        batch_size: Samples per batch, unless tokens are counted.
        rank: Rank of this process.
        num_replicas: Number of ranks.
        tokens: Most tokens of a batch, most tokens of an answer, and a function that counts those
            of prompts. A batch then holds as many samples as padded prompts and answers allow, at
            least one.
    """
    order = sorted(indices, key=lambda index: prompt_length(samples[index]), reverse=True)
    share = order[rank::num_replicas]
    if tokens is None:
        return split_batches(share, batch_size)
    budget, answer, count = tokens
    counts = dict(zip(share, count(share), strict=True))
    batches: list[list[int]] = []
    longest = 0
    for index in sorted(share, key=counts.__getitem__, reverse=True):
        if batches and (len(batches[-1]) + 1) * (longest + answer) <= budget:
            batches[-1].append(index)
        else:
            batches.append([index])
            longest = counts[index]
    return batches


def prompt_length(sample: Sample) -> tuple[int, int]:
    """Return what the length of a prompt grows with: its images, then its characters."""
    return len(sample.images), sum(len(turn.text) for turn in sample.turns)
