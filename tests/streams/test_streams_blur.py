from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from dmole.streams.blur import Blur, blurred
from dmole.streams.draws import Part

NAMES = ("a", "b", "c", "d", "e")


class Stock:
    """Tasks of given sizes."""

    def __init__(self, sizes: list[int], repeat: int = 1) -> None:
        self.sizes, self.times = dict(zip(NAMES, sizes, strict=False)), repeat

    def train_size(self, name: str) -> int:
        return self.sizes[name]

    def repeat(self, name: str) -> int:
        return self.times

    def stored_bytes(self, name: str) -> np.ndarray:
        raise AssertionError("the test needs no bytes")


def stages(stock: Stock, beta: float, seed: int = 0) -> list[list[Part]]:
    draw = Blur(tuple(stock.sizes), beta, None)
    return [draw.arriving((name,), stock, seed) for name in stock.sizes]


def counts(parts: list[Part]) -> dict[str, int]:
    return {part.task: len(part.indices) for part in parts if part.indices is not None}


def test_half_of_the_foreign_samples_is_of_each_neighbor() -> None:
    blurry = stages(Stock([100] * 4), 0.2)
    assert [counts(parts) for parts in blurry] == [
        {"a": 80, "b": 20},
        {"b": 80, "a": 10, "c": 10},
        {"c": 80, "b": 10, "d": 10},
        {"d": 80, "c": 20},
    ]


@pytest.mark.parametrize("beta", [0.03, 0.2, 0.5, 0.99])
@pytest.mark.parametrize("sizes", [[10], [7, 9], [40, 3, 11], [5, 100, 1, 30, 8]])
@pytest.mark.parametrize("repeat", [1, 3])
def test_a_stage_has_as_many_samples_as_its_task_and_the_exact_share(
    sizes: list[int], beta: float, repeat: int
) -> None:
    stock = Stock(sizes, repeat)
    for (name, size), parts in zip(stock.sizes.items(), stages(stock, beta), strict=True):
        foreign = round(beta * size * repeat) if len(sizes) > 1 else 0
        if not foreign:
            assert [(part.task, part.indices) for part in parts] == [(name, None)] * repeat
            continue
        found = counts(parts)
        assert sum(found.values()) == size * repeat
        assert sum(n for task, n in found.items() if task != name) == foreign


def test_nothing_comes_twice_in_a_piece_before_all_came_once() -> None:
    for parts in stages(Stock([30, 4, 30]), 0.6):
        for part in parts:
            often = Counter(part.indices.tolist())
            assert max(often.values()) - min(often.values()) <= 1
            assert max(often.values()) == 1 or len(often) == 4


def test_what_a_stage_leaves_out_is_what_its_neighbors_take() -> None:
    blurry = stages(Stock([50] * 5), 0.2)
    taken = Counter((p.task, i) for parts in blurry for p in parts for i in p.indices.tolist())
    inner = [taken[name, i] for name in "c" for i in range(50)]
    assert inner == [1] * 50
    two = stages(Stock([50] * 2), 0.2)
    taken = Counter((p.task, i) for parts in two for p in parts for i in p.indices.tolist())
    assert sorted(taken) == [(name, i) for name in "ab" for i in range(50)]
    assert set(taken.values()) == {1}


def test_without_blur_each_stage_is_the_whole_task() -> None:
    for parts, name in zip(stages(Stock([4, 5, 6], repeat=2), 0.0), "abc", strict=True):
        assert [(part.task, part.indices) for part in parts] == [(name, None)] * 2


def test_the_draw_follows_from_the_seed() -> None:
    def indices(seed: int) -> list[list[int]]:
        return [p.indices.tolist() for parts in stages(Stock([20] * 3), 0.3, seed) for p in parts]

    assert indices(0) == indices(0)
    assert indices(0) != indices(1)
    own = Blur(("a", "b"), 0.3, 1).arriving(("a",), Stock([20, 20]), 0)
    data = Blur(("a", "b"), 0.3, None).arriving(("a",), Stock([20, 20]), 1)
    assert [p.indices.tolist() for p in own] == [p.indices.tolist() for p in data]


def test_a_single_task_has_no_neighbor() -> None:
    (((span),),) = blurred([10], 0.5)
    assert (span.task, span.start, span.count) == (0, 0, 10)
