"""Embeddings of chosen samples: similar lengths share batches, and the order is that given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from dmole.callbacks.embedding import embed_samples
from dmole.data import Sample
from dmole.data.batch import Batch
from dmole.data.evaluation_batches import prompt_length
from dmole.data.sample import Turn

MakeWorld = Callable[..., Any]

WORDS = (1, 9, 3, 12, 2, 8)


def with_words(sample: Sample, words: int) -> Sample:
    turn = Turn("user", "<image>" + " star" * words)
    return replace(sample, id=f"{words} words", turns=(turn, *sample.turns[1:]))


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    """Return a list that the embedded batches are added to."""
    from dmole.module import ContinualModule

    seen: list[Batch] = []
    compute = ContinualModule.compute_embeddings

    def watched(self: ContinualModule, batch: Batch) -> torch.Tensor:
        seen.append(batch)
        return compute(self, batch)

    monkeypatch.setattr(ContinualModule, "compute_embeddings", watched)
    return seen


def test_samples_of_similar_length_share_a_batch(world: MakeWorld, batches: list[Batch]) -> None:
    built = world()
    sample = built.data.test_samples("paint")[0]
    pairs = [(with_words(sample, words), "paint") for words in WORDS]
    rows = embed_samples(built.state, built.module, pairs, "test")  # (6, D)
    assert [batch.sample_ids for batch in batches] == [
        ["12 words", "9 words"],
        ["8 words", "3 words"],
        ["2 words", "1 words"],
    ]
    lengths = [batch.question["attention_mask"].shape[1] for batch in batches]
    assert all(longer > shorter for longer, shorter in pairwise(lengths))
    for pair, row in zip(pairs, rows, strict=True):  # in the order given, as if each were alone
        built.module.embedder.cache.forget("paint/")
        alone = embed_samples(built.state, built.module, [pair], "test")
        torch.testing.assert_close(alone[0], row, rtol=1e-5, atol=1e-5)


def test_an_embedding_does_not_depend_on_what_is_known(
    world: MakeWorld, batches: list[Batch]
) -> None:
    built = world()
    sample = built.data.test_samples("paint")[0]
    pairs = [(with_words(sample, words), "paint") for words in WORDS]
    assert prompt_length(pairs[3][0]) > prompt_length(pairs[1][0])
    whole = embed_samples(built.state, built.module, pairs, "test")
    cache = built.module.embedder.cache
    cache.drop(["paint/test/12 words", "paint/test/2 words"])
    batches.clear()
    assert torch.equal(embed_samples(built.state, built.module, pairs, "test"), whole)
    assert [batch.sample_ids for batch in batches] == [
        ["12 words", "9 words"],
        ["2 words", "1 words"],
    ]
