"""Loaders of batches; the one for training goes on where it stopped."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from dmole.data.collate import Batch, Collator, Item
from dmole.data.labels import IGNORED
from dmole.data.sampler import TrainBatchSampler


class Items(Dataset[Item]):
    """Samples with the names of their tasks.

    Args:
        items: What the data set holds, in order.
    """

    def __init__(self, items: Sequence[Item]) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Item:
        return self._items[index]


class ResumableLoader(DataLoader[Item]):
    """A data loader that Lightning can save and restore within an epoch.

    A sample that a rank gets only to fill its last batch has no labels, so it does not count.

    Lightning finds `state_dict` and `load_state_dict` by name. The length is that of the whole
    epoch, also after resuming, because progress is counted from its beginning.

    Args:
        dataset: Samples to load.
        batch_sampler: Their order.
        options: Further arguments of the torch data loader.
    """

    def __init__(
        self, dataset: Dataset[Item], batch_sampler: TrainBatchSampler, **options: Any
    ) -> None:
        super().__init__(dataset, batch_sampler=batch_sampler, **options)
        self._order = batch_sampler
        self._taken = 0
        self._restored: dict[str, int] | None = None

    def state_dict(self) -> dict[str, int]:
        """Return how many batches of which epoch and stage were given."""
        return {"taken": self._taken, "epoch": self._order.epoch, "stage": self._order.stage}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a saved place at the next pass over its epoch.

        Raises:
            ValueError: If the place is in another stage.
        """
        if state["stage"] != self._order.stage:
            raise ValueError(
                f"the loader state is of stage {state['stage']}, not of {self._order.stage}"
            )
        self._restored = state

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Yield the batches of an epoch, without those taken before the state was saved."""
        # a generator: nothing happens before the first batch, so the epoch set in between counts
        restored, self._restored = self._restored, None
        # a state saved at the end of an epoch is restored with the epoch after it
        same_epoch = restored is not None and restored["epoch"] == self._order.epoch
        self._taken = restored["taken"] if restored is not None and same_epoch else 0
        self._order.start = self._taken
        try:
            for batch in super().__iter__():
                self._taken += 1
                last = self._taken == len(self)
                yield _without_last_answer(batch) if last and self._order.repeats else batch
        finally:
            self._order.start = 0


def _without_last_answer(batch: Batch) -> Batch:
    """Return a batch whose last sample takes no part in the loss."""
    assert batch.labels is not None  # a training batch
    labels = batch.labels.clone()
    labels[-1] = IGNORED
    return replace(batch, labels=labels)


def train_loader(
    items: Sequence[Item], collator: Collator, sampler: TrainBatchSampler, **options: Any
) -> ResumableLoader:
    """Return the loader of a stage's training batches.

    Args:
        items: Samples with their tasks.
        collator: Makes the tensors.
        sampler: Order of the items.
        options: ``num_workers`` and further arguments of the torch data loader.
    """
    collate = partial(collator, generation=False)
    return ResumableLoader(Items(items), sampler, collate_fn=collate, **_options(options))


def sequential_loader(
    items: Sequence[Item],
    collator: Collator,
    *,
    batches: Sequence[Sequence[int]],
    generation: bool,
    **options: Any,
) -> DataLoader[Item]:
    """Return a loader of given batches in their order.

    Args:
        items: Samples with their tasks.
        collator: Makes the tensors.
        batches: Indices of the items in each batch.
        generation: Whether the batches are prompts for generation.
        options: ``num_workers`` and further arguments of the torch data loader.
    """
    collate = partial(collator, generation=generation)
    sampler = [list(batch) for batch in batches]
    return DataLoader(Items(items), batch_sampler=sampler, collate_fn=collate, **_options(options))


def _options(options: dict[str, Any]) -> dict[str, Any]:
    """Fill in what keeps a loader from touching the global generator."""
    # without an own generator each pass draws the workers' seed from the global one
    generator = torch.Generator().manual_seed(0)
    return {"generator": generator, "worker_init_fn": _start_worker, **options}


def _start_worker(worker: int) -> None:
    # the tokenizer's threads do not survive the fork; it warns unless told not to use any
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # a cluster signals every process of a job; our parent decides when we end
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
