from __future__ import annotations

from collections.abc import Iterable

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


def plain(rows: dict[str, torch.Tensor]) -> dict[str, list[float]]:
    return {key: row.tolist() for key, row in rows.items()}


def test_the_cache_keeps_the_first_row_of_an_id() -> None:
    cache = EmbeddingCache()
    assert not cache.found(["a", "b", "a"])
    cache.add(["a", "b"], torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    cache.add(["a", "c"], torch.tensor([[9.0, 9.0], [5.0, 6.0]]))
    assert plain(cache.found(["c", "d", "a", "c"])) == {"c": [5.0, 6.0], "a": [1.0, 2.0]}
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


def test_forgotten_rows_are_missing_and_others_stay() -> None:
    cache = EmbeddingCache()
    ids = ["a/train/0", "a/test/0", "ab/train/0"]
    cache.add(ids, torch.arange(6.0).reshape(3, 2))
    cache.forget("a/train/", "none/train/")
    assert plain(cache.found(ids)) == {"a/test/0": [2, 3], "ab/train/0": [4, 5]}
    cache.forget()
    assert len(cache) == 2
    cache.drop(["a/test/0", "z"])
    assert list(cache.rows()) == ["ab/train/0"]


def test_rows_that_are_not_in_memory_are_read_from_the_store() -> None:
    class Store:
        def found(self, ids: Iterable[str]) -> dict[str, torch.Tensor]:
            asked.extend(ids)
            return {"b": torch.tensor([7.0])}

    asked: list[str] = []
    cache = EmbeddingCache()
    cache.store = Store()
    cache.add(["a"], torch.ones(1, 1))
    assert plain(cache.found(["a", "b", "c"])) == {"a": [1.0], "b": [7.0]}
    assert asked == ["b", "c"]
    assert len(cache) == 1
