from __future__ import annotations

import pytest
import torch

from dmole.routing import EmbeddingCache, combine, masked_max_pool


def test_padding_takes_no_part_in_the_maximum() -> None:
    hidden = torch.tensor([[[-3.0, -1.0], [-2.0, -5.0], [9.0, 9.0]]])
    mask = torch.tensor([[1, 1, 0]])
    assert masked_max_pool(hidden, mask).tolist() == [[-2.0, -1.0]]


def test_a_fully_masked_row_is_zero() -> None:
    pooled = masked_max_pool(torch.randn(2, 3, 4), torch.tensor([[1, 0, 1], [0, 0, 0]]))
    assert torch.equal(pooled[1], torch.zeros(4))
    assert masked_max_pool(torch.randn(2, 0, 4), torch.ones(2, 0)).tolist() == [[0.0] * 4] * 2


def test_pooling_is_independent_of_padding_and_batch_mates() -> None:
    rows = [torch.randn(length, 5, dtype=torch.bfloat16) for length in (3, 7)]
    alone = [masked_max_pool(row[None], torch.ones(1, len(row))) for row in rows]
    hidden = torch.full((2, 9, 5), 100.0, dtype=torch.bfloat16)
    mask = torch.zeros(2, 9)
    for i, row in enumerate(rows):
        hidden[i, : len(row)] = row
        mask[i, : len(row)] = 1
    pooled = masked_max_pool(hidden, mask)
    assert pooled.dtype == torch.float32
    assert torch.equal(pooled, torch.cat(alone))


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match=r"mask \(B, S\)"):
        masked_max_pool(torch.zeros(2, 3, 4), torch.zeros(2, 4))


def test_embeddings_put_vision_beside_text() -> None:
    both = combine(torch.ones(2, 3, dtype=torch.bfloat16), torch.zeros(2, 2))
    assert both.tolist() == [[1, 1, 1, 0, 0]] * 2


def test_the_cache_keeps_the_first_row_of_an_id() -> None:
    cache = EmbeddingCache()
    assert cache.missing(["a", "b", "a"]) == ["a", "b"]
    cache.add(["a", "b"], torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    cache.add(["a", "c"], torch.tensor([[9.0, 9.0], [5.0, 6.0]]))
    assert cache.get_many(["c", "a"]).tolist() == [[5.0, 6.0], [1.0, 2.0]]
    assert cache.missing(["a", "d"]) == ["d"]
    assert len(cache) == 3


def test_the_cache_names_what_is_wrong() -> None:
    cache = EmbeddingCache()
    cache.add(["a"], torch.zeros(1, 3))
    with pytest.raises(ValueError, match="3 dimensions here, got 4"):
        cache.add(["b"], torch.zeros(1, 4))
    with pytest.raises(ValueError, match="2 ids do not fit"):
        cache.add(["b", "c"], torch.zeros(1, 3))
    with pytest.raises(ValueError, match="sample b is not finite"):
        cache.add(["b"], torch.full((1, 3), torch.nan))
    with pytest.raises(KeyError, match="sample z"):
        cache.get_many(["z"])


def test_forgotten_rows_are_missing_and_others_stay() -> None:
    cache = EmbeddingCache()
    ids = ["a/train/0", "a/test/0", "ab/train/0"]
    cache.add(ids, torch.arange(6.0).reshape(3, 2))
    cache.forget("a/train/", "none/train/")
    assert cache.missing(ids) == ["a/train/0"]
    assert cache.get_many(ids[1:]).tolist() == [[2, 3], [4, 5]]
    cache.forget()
    assert len(cache) == 2
