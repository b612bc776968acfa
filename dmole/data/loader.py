"""Batch loaders; the training loader resumes within an epoch."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from dmole.data.collate import Batch, Collator, TaskSample
from dmole.data.labels import IGNORED
from dmole.data.sampler import TrainBatchSampler


class Items(Dataset[TaskSample]):
    """Samples with the names of their tasks.

    Args:
        items: The samples, in order.
    """

    def __init__(self, items: Sequence[TaskSample]) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> TaskSample:
        return self._items[index]


class ResumableLoader(DataLoader[TaskSample]):
    """A data loader that Lightning can save and restore within an epoch.

    A sample that only fills the last batch of a rank has no labels, so the loss ignores it.

    Lightning calls `state_dict` and `load_state_dict` by name. The length is that of the whole
    epoch, also after resuming, because progress is counted from the start of the epoch.

    Args:
        dataset: Samples to load.
        batch_sampler: Order of the samples.
        options: Further arguments of the torch data loader.
    """

    def __init__(
        self, dataset: Dataset[TaskSample], batch_sampler: TrainBatchSampler, **options: Any
    ) -> None:
        super().__init__(dataset, batch_sampler=batch_sampler, **options)
        self._order = batch_sampler
        self._taken = 0
        self._restored: dict[str, int] | None = None

    def state_dict(self) -> dict[str, int]:
        """Return the number of batches yielded, the epoch and the stage."""
        return {"taken": self._taken, "epoch": self._order.epoch, "stage": self._order.stage}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resume from a saved position at the next pass over its epoch.

        Raises:
            ValueError: If the position belongs to another stage.
        """
        if state["stage"] != self._order.stage:
            raise ValueError(
                f"the loader state is of stage {state['stage']}, not of {self._order.stage}"
            )
        self._restored = state

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Yield the batches of an epoch, without those yielded before the state was saved."""
        # a generator: this code runs at the first batch, so an epoch set before that counts
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
    """Return a batch whose last sample is left out of the loss."""
    assert batch.labels is not None  # a training batch
    labels = batch.labels.clone()
    labels[-1] = IGNORED
    return replace(batch, labels=labels)


def train_loader(
    items: Sequence[TaskSample], collator: Collator, sampler: TrainBatchSampler, **options: Any
) -> ResumableLoader:
    """Return the loader of a stage's training batches.

    Args:
        items: Samples with the names of their tasks.
        collator: Makes the tensors.
        sampler: Order of the samples.
        options: ``num_workers`` and further arguments of the torch data loader.
    """
    collate = partial(collator, generation=False)
    return ResumableLoader(Items(items), sampler, collate_fn=collate, **_options(options))


def sequential_loader(
    items: Sequence[TaskSample],
    collator: Collator,
    *,
    batches: Sequence[Sequence[int]],
    generation: bool,
    **options: Any,
) -> DataLoader[TaskSample]:
    """Return a loader of given batches in their order.

    Args:
        items: Samples with the names of their tasks.
        collator: Makes the tensors.
        batches: Indices of the samples in each batch.
        generation: Whether the batches are prompts for generation.
        options: ``num_workers`` and further arguments of the torch data loader.
    """
    collate = partial(collator, generation=generation)
    sampler = [list(batch) for batch in batches]
    return DataLoader(Items(items), batch_sampler=sampler, collate_fn=collate, **_options(options))


def _options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options with defaults that leave the global generator untouched."""
    # without a generator argument each pass draws the workers' seed from the global generator
    generator = torch.Generator().manual_seed(0)
    return {"generator": generator, "worker_init_fn": _start_worker, **options}


def _start_worker(worker: int) -> None:
    # the tokenizer's threads do not survive the fork; this setting silences its warning
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # a cluster signals every process of a job; the parent decides when a worker ends
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
