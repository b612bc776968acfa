from __future__ import annotations

import doctest
import importlib
import math
from typing import Any

import numpy as np
import pytest

from dmole.streams.draws import Part
from dmole.streams.replay import Replay, random_keys, replayed_count, reservoir, take

SIZES = {"a": 5, "b": 9, "c": 6, "d": 7}


class Stock:
    """Tasks of given sizes; each sample takes the bytes of its index times a hundred."""

    def __init__(
        self, sizes: dict[str, int] = SIZES, repeats: dict[str, int] | None = None
    ) -> None:
        self.sizes, self.repeats = sizes, repeats or {}

    def train_size(self, name: str) -> int:
        return self.sizes[name]

    def repeat(self, name: str) -> int:
        return self.repeats.get(name, 1)

    def stored_bytes(self, name: str) -> np.ndarray:
        return 100 * (1 + np.arange(self.sizes[name]))


def replay(past: str, size: int | None = None, mb: float | None = None, **options: Any) -> Replay:
    return Replay(tuple(past), size, mb, options.get("share"), options.get("seed"))


def drawn(parts: list[Part]) -> list[tuple[str, int]]:
    return [(part.task, index) for part in parts for index in part.indices.tolist()]


def buffered(past: str, size: int | None = None, mb: float | None = None, seed: int = 0) -> set:
    found = drawn(replay(past, size, mb).replayed(("z",), Stock(), seed))
    assert len(set(found)) == len(found)
    return set(found)


def test_every_sample_of_the_past_is_as_likely_to_be_in_the_buffer() -> None:
    tries = 4000
    counts = dict.fromkeys([(name, i) for name in "abc" for i in range(SIZES[name])], 0)
    for seed in range(tries):
        for sample in buffered("abc", 4, seed=seed):
            counts[sample] += 1
    chance = 4 / 20
    spread = math.sqrt(tries * chance * (1 - chance))
    assert max(abs(count - tries * chance) for count in counts.values()) < 4 * spread
    assert sum(counts.values()) == 4 * tries


def test_each_set_of_samples_is_as_likely_as_in_algorithm_r() -> None:
    tries = 6000
    pairs: dict[frozenset, int] = {}
    stock = Stock({"a": 2, "b": 2})
    for seed in range(tries):
        pair = frozenset(drawn(replay("ab", 2).replayed(("z",), stock, seed)))
        pairs[pair] = pairs.get(pair, 0) + 1
    expected = tries / 6
    assert len(pairs) == 6
    chi_square = sum((count - expected) ** 2 / expected for count in pairs.values())
    assert chi_square < 20.5  # five degrees of freedom, one in a thousand


@pytest.mark.parametrize("size", [1, 5, 19, 20, 21, 1000])
def test_the_buffer_is_full_or_holds_everything(size: int) -> None:
    assert len(buffered("abc", size)) == min(size, 20)


@pytest.mark.parametrize("mb", [0.0001, 0.0004, 0.001, 0.003, 0.0111, 1.0])
def test_the_buffer_never_takes_more_bytes_than_it_may(mb: float) -> None:
    stock = Stock()
    for seed in range(50):
        found = buffered("abc", mb=mb, seed=seed)
        used = sum(stock.stored_bytes(name)[index] for name, index in found)
        assert 0 < used <= mb * 1e6
        if mb == 1.0:
            assert len(found) == 20


def test_a_buffer_of_bytes_is_as_full_as_its_next_sample_allows() -> None:
    keys = [np.array([0.4, 0.1, 0.2, 0.3])]
    costs = [np.array([1, 5, 90, 5])]
    for limit, expected in ((4, [0]), (5, [1]), (89, [0, 1, 3]), (99, [1, 2]), (101, [0, 1, 2, 3])):
        assert reservoir(keys, costs, limit)[0].tolist() == expected


@pytest.mark.parametrize("options", [{"size": 6}, {"mb": 0.002}])
def test_the_buffer_is_one_that_a_learner_could_have_kept(options: dict[str, Any]) -> None:
    for seed in range(100):
        earlier = buffered("abc", seed=seed, **options)
        later = buffered("abcd", seed=seed, **options)
        assert {sample for sample in later if sample[0] != "d"} <= earlier
        assert buffered("abc", seed=seed, **options) == earlier


def test_the_buffer_follows_from_its_seed_or_else_from_that_of_the_data() -> None:
    own = [drawn(replay("abc", 6, seed=7).replayed(("z",), Stock(), seed)) for seed in (0, 1)]
    assert own[0] == own[1]
    assert buffered("abc", 6, seed=7) == set(own[0])
    assert buffered("abc", 6, seed=0) != buffered("abc", 6, seed=1)
    assert not np.array_equal(random_keys(9, 0, "a"), random_keys(9, 0, "b"))


@pytest.mark.parametrize("share", [0.05, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("size", [3, 20])
def test_replayed_samples_make_up_their_share_of_the_epoch(share: float, size: int) -> None:
    stock = Stock(SIZES | {"z": 50}, {"z": 3})
    found = drawn(replay("abc", size, share=share).replayed(("z",), stock, 0))
    assert len(found) == replayed_count(150, share) == round(150 * share / (1 - share))
    assert set(found) <= buffered("abc", size)
    often = [found.count(sample) for sample in buffered("abc", size)]
    assert max(often) - min(often) <= 1  # none is repeated before each came once
    assert found == drawn(replay("abc", size, share=share).replayed(("z",), stock, 0))


def test_the_first_stage_replays_nothing() -> None:
    draw = replay("", 5, share=0.5)
    assert draw.replayed(("a",), Stock(), 0) == []
    (part,) = draw.arriving(("a",), Stock(), 0)
    assert (part.task, part.indices) == ("a", None)


def test_a_buffer_too_small_for_any_sample_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no sample of a, b fits in a buffer of 5e-05 MB"):
        replay("ab", mb=0.00005).replayed(("z",), Stock(), 0)


def test_taken_entries_stay_in_their_groups() -> None:
    groups = [np.array([4, 6]), np.array([], np.int64), np.array([1])]
    chosen = take(groups, np.array([2, 0, 2, 1]))
    assert [group.tolist() for group in chosen] == [[4, 6], [], [1, 1]]


def test_a_million_samples_are_drawn_from_as_numbers_alone() -> None:
    parts = replay("ab", 1000, share=0.1).replayed(
        ("z",), Stock({"a": 10**6, "b": 10**6, "z": 10**6}), 0
    )
    assert sum(len(part.indices) for part in parts) == 111_111


@pytest.mark.parametrize("name", ["blur", "draws", "replay"])
def test_examples_in_the_docstrings_hold(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"dmole.data.{name}"))
    assert result.attempted
    assert result.failed == 0
