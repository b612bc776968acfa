"""Batch loaders; the training loader resumes within an epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

from torch.utils.data import DataLoader, Dataset

from dmole.data.batch import Batch
from dmole.data.collate import Collator, TaskSample
from dmole.data.labels import IGNORED
from dmole.data.sampler import OrderRule, TrainBatchSampler, Used
from dmole.data.window import windows
from dmole.data.workers import Loader, worker_options


class Items(Dataset[TaskSample]):
    """Samples with the names of their tasks.

    Args:
        items: The samples, in order.
        filler: A further sample, after the last one; None for none.
    """

    def __init__(self, items: Sequence[TaskSample], filler: TaskSample | None = None) -> None:
        self._items = items
        self._filler = filler

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> TaskSample:
        if self._filler is not None and index == len(self._items):
            return self._filler
        return self._items[index]


class ResumableLoader(Loader):
    """A data loader that Lightning can save and restore within an epoch.

    Its workers stay from epoch to epoch; Lightning ends them after the training of a stage. A new
    pass ends the one before it.

    A sample that only fills the last batch of a rank has no labels, so the loss ignores it.

    Lightning calls `state_dict` and `load_state_dict` by name. The length is that of the whole
    epoch, also after resuming, because progress is counted from the start of the epoch.

    Args:
        dataset: Samples to load.
        batch_sampler: Order of the samples.
        limit: Returns the number of batches after which the trainer ends an epoch; None for all.
        options: Further arguments of the torch data loader.
    """

    def __init__(
        self,
        dataset: Dataset[TaskSample],
        batch_sampler: TrainBatchSampler,
        limit: Callable[[], int] | None = None,
        **options: Any,
    ) -> None:
        persistent = options.get("num_workers", 0) > 0
        super().__init__(
            dataset, batch_sampler=batch_sampler, persistent_workers=persistent, **options
        )
        self._order = batch_sampler
        self._limit = limit
        self._taken = self._first = 0
        self._restored: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return epoch, stage and the batches yielded so far, with the rule of their order."""
        order = self._order
        return {
            "taken": self._taken,
            "epoch": order.epoch,
            "stage": order.stage,
            "first": self._first,
            "rule": list(order.rule),
            "used": [[*rule, batches] for rule, batches in order.used],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a saved position at the next pass over its epoch.

        Raises:
            ValueError: If the position belongs to another stage, or is none.
        """
        rules = [state.get("rule", ()), *state.get("used", ())]
        numbers = [state["taken"], state["epoch"], state.get("first", 0), *chain(*rules)]
        if not all(isinstance(number, int) and number >= 0 for number in numbers):
            raise ValueError(f"the loader state has other values than counts: {state!r:.200}")
        if state["stage"] != self._order.stage:
            raise ValueError(
                f"the loader state is of stage {state['stage']}, not of {self._order.stage}"
            )
        self._restored = state

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Yield the batches of an epoch, without those yielded before the state was saved."""
        # a generator: this code runs at the first batch, so an epoch set before that counts
        restored, self._restored = self._restored, None
        self._order.used, self._first, self._taken = (), 0, 0
        # a state saved at the end of an epoch is restored with the epoch after it
        if restored is not None and restored["epoch"] == self._order.epoch:
            position = position_after(restored, self._order)
            self._order.used, self._first, self._taken = position
        self._order.start = self._taken - self._first
        end = len(self) if self._limit is None else min(len(self), self._limit())
        try:
            for batch in windows(self._read(), self._order.rule.window, self._taken, end):
                self._taken += 1
                yield batch
        finally:
            self._order.start = 0

    def _read(self) -> Iterator[Batch]:
        """Yield the rest of the epoch; the repetition at its end is left out of the loss."""
        repeats = self._order.repeats
        for number, batch in enumerate(super().__iter__(), start=self._taken + 1):
            yield _without_last_answer(batch) if number == len(self) and repeats else batch


def position_after(
    state: dict[str, Any], order: TrainBatchSampler
) -> tuple[tuple[Used, ...], int, int]:
    """Return the position in an epoch at which a resumed run continues.

    If the rule of the order has changed since, the rest of the epoch holds the samples that are
    not used yet, in the order of the new rule. Its batches are the last ones of the epoch.

    Args:
        state: State of a loader; before batches had windows, it had no rule.
        order: The order of the resumed run.

    Returns:
        The batches that other rules have taken, the number of the first batch in this order, and
        that of the next one.

    Raises:
        ValueError: If the rule has changed and one of both counts tokens.
    """
    used = tuple(Used(OrderRule(*rule), batches) for *rule, batches in state.get("used", ()))
    saved = OrderRule(*state.get("rule", order.rule._replace(window=1)))
    if saved == order.rule:
        return used, state.get("first", 0), state["taken"]
    if saved.max_tokens or order.rule.max_tokens:
        budget = saved.max_tokens or "null"
        raise ValueError(
            "batches by tokens cannot change within an epoch: resume with the seed and "
            f"accumulate_grad_batches of the run and data.max_tokens_per_batch {budget}"
        )
    used = (*used, Used(saved, state["taken"] - state.get("first", 0)))
    before, order.used = order.used, used
    first = len(order) - order.batches_of(len(order.rest()))
    order.used = before
    return used, first, first


def _without_last_answer(batch: Batch) -> Batch:
    """Return a batch whose last sample is left out of the loss."""
    assert batch.labels is not None  # a training batch
    labels = batch.labels.clone()
    labels[batch.real - 1] = IGNORED
    return replace(batch, labels=labels)


def train_loader(
    items: Sequence[TaskSample],
    collator: Collator,
    sampler: TrainBatchSampler,
    limit: Callable[[], int] | None = None,
    *,
    in_step: bool = False,
    **options: Any,
) -> ResumableLoader:
    """Return the loader of a stage's training batches.

    Args:
        items: Samples with the names of their tasks.
        collator: Makes the tensors.
        sampler: Order of the samples.
        limit: See :class:`ResumableLoader`.
        in_step: Whether every batch has an image, that of a filler if need be.
        options: ``num_workers`` and further arguments of the torch data loader.
    """
    collate = partial(collator, generation=False, in_step=in_step)
    options = worker_options(options)
    return ResumableLoader(Items(items), sampler, limit, collate_fn=collate, **options)


def sequential_loader(
    items: Sequence[TaskSample],
    collator: Collator,
    *,
    batches: Sequence[Sequence[int]],
    generation: bool,
    filler: TaskSample | None = None,
    **options: Any,
) -> DataLoader[TaskSample]:
    """Return a loader of given batches in their order.

    Args:
        items: Samples with the names of their tasks.
        collator: Makes the tensors.
        batches: Indices of the samples in each batch.
        generation: Whether the batches are prompts for generation.
        filler: The sample after the last one, with which every batch gets an image; None for none.
        options: ``num_workers`` and further arguments of the torch data loader.
    """
    collate = partial(collator, generation=generation, in_step=filler is not None)
    sampler = [list(batch) for batch in batches]
    options = worker_options(options)
    return Loader(Items(items, filler), batch_sampler=sampler, collate_fn=collate, **options)
