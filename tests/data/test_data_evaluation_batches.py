"""Batches of test samples: similar lengths together, the same in every process, a token budget."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from dmole.data import Sample
from dmole.data.collate import Collator
from dmole.data.evaluation_batches import evaluation_batches
from dmole.data.sample import ArrayImage, Turn

LENGTHS = (3, 40, 8, 40, 1, 25, 2)


def sample(index: int, characters: int, images: int = 0) -> Sample:
    pictures = tuple(ArrayImage(np.zeros((32, 32, 3), np.uint8)) for _ in range(images))
    return Sample(str(index), (Turn("user", "<image>" * images + "a" * characters),), pictures)


SAMPLES = [sample(index, length) for index, length in enumerate(LENGTHS)]


def test_similar_lengths_share_a_batch_and_the_longest_come_first() -> None:
    assert evaluation_batches(SAMPLES, range(7), 2) == [[1, 3], [5, 2], [0, 6], [4]]
    assert evaluation_batches(SAMPLES, [4, 3, 0], 2) == [[3, 0], [4]]  # a resumed pass
    with_image = [*SAMPLES, sample(7, 0, images=1)]
    assert evaluation_batches(with_image, range(8), 2)[0] == [7, 1]


def test_ranks_share_the_samples_without_repeats() -> None:
    parts = [evaluation_batches(SAMPLES, range(7), 2, rank, 2) for rank in range(2)]
    assert parts == [[[1, 5], [0, 4]], [[3, 2], [6]]]


@pytest.mark.parametrize("budget", [1, 50, 90, 200, 10_000])
def test_a_batch_grows_to_the_budget_and_holds_at_least_one(budget: int) -> None:
    def count(indices: Any) -> list[int]:
        return [LENGTHS[index] for index in indices]

    batches = evaluation_batches(SAMPLES, range(7), 1, tokens=(budget, 5, count))
    assert sorted(itertools.chain(*batches)) == list(range(7))
    for batch, after in itertools.zip_longest(batches, batches[1:]):
        longest = max(LENGTHS[index] for index in batch)
        assert len(batch) == 1 or len(batch) * (longest + 5) <= budget
        assert after is None or (len(batch) + 1) * (longest + 5) > budget


def test_tokens_of_prompts_are_counted_as_they_are_collated(processors: dict[str, Any]) -> None:
    collator = Collator(processors["llava"])
    items = [(sample(i, 7 * i, images=i % 3), "task") for i in range(6)]
    collated = [collator([item], generation=True).inputs["attention_mask"] for item in items]
    assert collator.count_tokens(items, generation=True) == [int(mask.sum()) for mask in collated]
    assert collator.count_tokens([], generation=True) == []
