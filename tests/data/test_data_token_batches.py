"""Batches by tokens keep to their budget, on any number of ranks, and every sample comes once."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from dmole.data.collate import Collator
from dmole.data.loader import position_after
from dmole.data.sample import Sample, Turn
from dmole.data.sample_errors import SampleError
from dmole.data.sampler import OrderRule, TrainBatchSampler
from dmole.data.sequences import SampleList, TaskItems
from dmole.data.token_batches import TokenBatchSampler, tokens_of

BUDGET = 40
COUNTS = np.array([3, 17, 5, 40, 8, 8, 21, 3, 13, 9, 30, 4, 6, 2, 11], dtype=np.int64)


def sampler(counts: Any = COUNTS, **place: Any) -> TokenBatchSampler:
    return TokenBatchSampler(len(counts), BUDGET, lambda: counts, **place)


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_batches_keep_to_the_budget_and_share_all_samples(ranks: int, window: int) -> None:
    shares = [list(sampler(rank=rank, num_replicas=ranks, window=window)) for rank in range(ranks)]
    assert all(max(COUNTS[batch]) * len(batch) <= BUDGET for share in shares for batch in share)
    assert len({len(share) for share in shares}) == 1
    assert all([len(b) for b in share] == [len(b) for b in shares[0]] for share in shares)
    seen = Counter(index for share in shares for batch in share for index in batch)
    assert set(seen) == set(range(len(COUNTS)))
    assert sum(seen.values()) == -(-len(COUNTS) // ranks) * ranks  # repeats at the end alone
    assert len(sampler(num_replicas=ranks, window=window)) == len(shares[0])


def test_a_batch_is_filled() -> None:
    batches = sorted((sorted(COUNTS[batch].tolist()) for batch in sampler()), key=lambda b: b[0])
    assert batches == [[2, 3, 3, 4, 5, 6], [8, 8, 9], [11, 13], [17], [21], [30], [40]]


def test_epochs_have_the_same_batches_in_another_order() -> None:
    order, epochs = sampler(window=2), []
    for epoch in range(4):
        order.set_epoch(epoch)
        batches = [tuple(batch) for batch in order]
        epochs.append([batches[i : i + 2] for i in range(0, len(batches), 2)])
    assert all(sorted(steps) == sorted(epochs[0]) for steps in epochs)
    assert len({str(steps) for steps in epochs}) > 1
    assert len({str(steps[-1]) for steps in epochs}) == 1  # the last step may be smaller


def test_a_resumed_order_begins_where_it_was_left() -> None:
    whole, rest = sampler(seed=3), sampler(seed=3)
    rest.start = 2
    assert list(rest) == list(whole)[2:]
    state = {"taken": 2, "epoch": 0, "stage": 0, "first": 0, "rule": list(whole.rule), "used": []}
    assert position_after(state, rest) == ((), 0, 2)


@pytest.mark.parametrize(
    ("saved", "budget"), [(OrderRule(1, 0, True, 1, 99), 99), (OrderRule(4, 0, True, 1), "null")]
)
def test_another_budget_within_an_epoch_is_refused(saved: OrderRule, budget: object) -> None:
    state = {"taken": 2, "epoch": 0, "stage": 0, "rule": list(saved)}
    with pytest.raises(ValueError, match=f"resume with .* data.max_tokens_per_batch {budget}$"):
        position_after(state, sampler())
    with pytest.raises(ValueError, match=f"data.max_tokens_per_batch {BUDGET}$"):
        position_after({**state, "rule": list(sampler().rule)}, TrainBatchSampler(len(COUNTS), 4))


def sample(name: str, words: int) -> Sample:
    turns = (Turn("user", "red " * words + "?"), Turn("assistant", "blue"))
    return Sample(name, turns)


def test_tokens_are_those_of_the_collated_samples(processors: dict[str, Any]) -> None:
    collator = Collator(processors["llava"])
    samples = [sample(f"s{words}", words) for words in (1, 9, 4)]
    items = TaskItems([("a", SampleList(samples[:2])), ("b", SampleList(samples[2:]))])
    lengths = collator(list(items), generation=False).inputs["attention_mask"].sum(dim=1)
    assert tokens_of(items, collator, most=1000).tolist() == lengths.tolist()
    most = int(lengths.max()) - 1
    message = f"task 'a': sample 's9': it has {most + 1} tokens, a batch at most {most}"
    with pytest.raises(SampleError, match=message):
        tokens_of(items, collator, most)


def test_samples_that_will_be_cut_count_as_long_as_they_may_be(processors: dict[str, Any]) -> None:
    collator = Collator(processors["llava"], max_length=5, on_too_long="truncate")
    items = TaskItems([("a", SampleList([sample("s", 9)]))])
    assert tokens_of(items, collator, most=5).tolist() == [5]
