"""The window of an optimizer step: the micro-batches whose gradients it accumulates."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from dmole.data.labels import answer_positions

if TYPE_CHECKING:
    from dmole.data.batch import Batch


class Counts(NamedTuple):
    """What a micro-batch, or all micro-batches of a window, hold on this rank.

    Samples without answer tokens are not counted: they only fill the last batch of a rank.

    Args:
        tokens: Answer tokens, over which the loss is averaged.
        samples: Samples.
        inputs: Tokens of the language model, padding excluded.
        batches: Micro-batches with at least one answer token.
        steps: The first of these in each window, which stands for the whole optimizer step.
    """

    tokens: int
    samples: int
    inputs: int
    batches: int
    steps: int


class Window(NamedTuple):
    """The place of a micro-batch in its window.

    Args:
        own: Counts of the micro-batch.
        total: Counts of all micro-batches of the window on this rank.
        first: Whether the micro-batch is the first of the window.
    """

    own: Counts
    total: Counts
    first: bool


def counts_of(batch: Batch) -> Counts:
    """Return the counts of a training batch that is a window of its own."""
    assert batch.labels is not None  # a training batch
    rows = answer_positions(batch.labels)  # (B, T - 1)
    answered = rows.any(dim=1)  # (B,)
    mask = batch.inputs.get("attention_mask")
    inputs = batch.labels.new_ones(batch.labels.shape) if mask is None else mask
    samples = int(answered.sum())
    present = int(samples > 0)
    return Counts(int(rows.sum()), samples, int(inputs[answered].sum()), present, present)


def windows(batches: Iterable[Batch], size: int, start: int, end: int) -> Iterator[Batch]:
    """Yield batches that know their window; reads one window ahead.

    Lightning steps after batch ``i`` of an epoch if ``i + 1`` is a multiple of ``size`` or the
    last one, so the last window of an epoch, and the first one after a change of ``size``, may
    be shorter.

    Args:
        batches: The batches of an epoch from position ``start`` on.
        size: Micro-batches of a window.
        start: 0-based position of the first batch in the epoch.
        end: Batches of the epoch.
    """
    source = iter(batches)
    while start < end:
        stop = min((start // size + 1) * size, end)
        window = list(itertools.islice(source, stop - start))
        if not window:
            return
        counts = _joined(counts_of(batch) for batch in window)
        total = Counts(*(sum(column) for column in zip(*counts, strict=True)))
        for index, own in enumerate(counts):
            batch, window[index] = window[index], None  # type: ignore[call-overload]
            yield replace(batch, window=Window(own, total, index == 0))
        start = stop


def _joined(counts: Iterable[Counts]) -> list[Counts]:
    """Return the counts of the micro-batches of a window, of which only one stands for the step."""
    joined: list[Counts] = []
    steps = 1
    for own in counts:
        joined.append(own._replace(steps=min(steps, own.steps)))
        steps -= joined[-1].steps
    return joined
