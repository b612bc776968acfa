"""Training batches with a budget of padded tokens in place of a number of samples."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from operator import itemgetter

import numpy as np
import torch

from dmole.data.collate import Collator
from dmole.data.sampler import Indices, OrderRule, TrainBatchSampler
from dmole.data.sequences import TaskItems
from dmole.storage.seeds import derive_seed

_AT_ONCE = 1024  # samples whose texts are in memory together


class TokenBatchSampler(TrainBatchSampler):
    """Batches that hold as many samples of similar length as a budget of padded tokens allows.

    The samples of a batch are the same in every epoch of a stage: the number of batches must not
    change between epochs, since schedules are laid out over it. Their order is shuffled in each
    epoch; the last step, which may be smaller, stays last. All depends on seed, stage and epoch
    alone. The ranks share each batch of all ranks, so that all have the same number of batches.

    Args:
        size: Number of samples.
        max_tokens: Most tokens of a batch of one rank: its samples times the longest of them.
        tokens: Returns the tokens of all samples, ``(N,)``, none above the budget; called once.
        seed: Seed of the run.
        stage: Number of the stage.
        rank: Rank of this process.
        num_replicas: Number of ranks.
        window: Batches whose gradients an optimizer step accumulates.
    """

    def __init__(
        self,
        size: int,
        max_tokens: int,
        tokens: Callable[[], Indices],
        *,
        seed: int = 0,
        stage: int = 0,
        rank: int = 0,
        num_replicas: int = 1,
        window: int = 1,
    ) -> None:
        super().__init__(
            size, 1, seed=seed, stage=stage, rank=rank, num_replicas=num_replicas, window=window
        )
        self.rule = OrderRule(1, seed, True, window, max_tokens)
        self._tokens = tokens
        self._known: list[Indices] | None = None

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch, also when an epoch is resumed."""
        return len(self._groups())

    def _batches(self, rule: OrderRule, samples: Indices) -> Iterator[Indices]:
        """Yield the batches of all ranks together; `samples` are all, since no rule was before."""
        groups = self._groups()
        seed = derive_seed(rule.seed, self.stage, self.epoch)
        generator = torch.Generator().manual_seed(seed)
        steps = range(0, len(groups), rule.window)
        order = torch.randperm(len(steps) - 1, generator=generator).tolist()
        for step in (*order, len(steps) - 1):
            yield from groups[steps[step] : steps[step] + rule.window]

    def _groups(self) -> list[Indices]:
        """Return the batches of all ranks together, shortest samples first.

        Each holds a multiple of the number of ranks, but for the last one.
        """
        if self._known is None:
            tokens = self._tokens()
            generator = torch.Generator().manual_seed(derive_seed(self.rule.seed, self.stage))
            order = torch.randperm(self._size, generator=generator).numpy()
            order = order[np.argsort(tokens[order], kind="stable")]
            self._known, begin = [], 0
            while begin < len(order):
                end = self._end(tokens[order], begin)
                self._known.append(order[begin:end])
                begin = end
        return self._known

    def _end(self, tokens: Indices, begin: int) -> int:
        """Return the end of the batch that begins at a position of the ascending counts."""
        ranks, samples = self._num_replicas, 1  # samples of each rank
        while begin + samples * ranks < len(tokens):
            longest = tokens[min(begin + (samples + 1) * ranks, len(tokens)) - 1]
            if (samples + 1) * longest > self.rule.max_tokens:
                break
            samples += 1
        return min(begin + samples * ranks, len(tokens))


def tokens_of(items: TaskItems, collator: Collator, most: int) -> Indices:
    """Return the tokens of training samples, ``(N,)``.

    Args:
        items: The samples.
        collator: Counts their tokens; the images of a task count like those of its first sample.
        most: Maximum number of tokens of a sample.

    Raises:
        SampleError: If a sample has more; names it.
    """
    counts: list[int] = []
    for _, samples in itertools.groupby(items, key=itemgetter(1)):
        while chunk := list(itertools.islice(samples, _AT_ONCE)):
            counts += collator.count_tokens(chunk, generation=False, most=most)
    return np.array(counts, dtype=np.int64)
