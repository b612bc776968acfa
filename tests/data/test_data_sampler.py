from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from dmole.data.sample import Sample, Turn
from dmole.data.sampler import TrainBatchSampler, approximate_length, random_batches, split_batches
from dmole.storage.seeds import derive_seed


def flat(sampler: TrainBatchSampler) -> list[int]:
    return [index for batch in sampler for index in batch]


@pytest.mark.parametrize("batch_size", [1, 3, 8, 100])
@pytest.mark.parametrize("grouped", [True, False])
def test_every_sample_comes_once_an_epoch(batch_size: int, grouped: bool) -> None:
    lengths = [index % 7 for index in range(50)] if grouped else None
    sampler = TrainBatchSampler(50, batch_size, lengths=lengths)
    assert sorted(flat(sampler)) == list(range(50))
    assert len(list(sampler)) == len(sampler)
    assert {len(batch) for batch in list(sampler)[:-1]} <= {batch_size}


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize(("size", "replicas"), [(50, 2), (50, 4), (51, 2), (3, 8), (1, 3)])
def test_ranks_have_equal_batches_and_share_all_samples(
    size: int, replicas: int, grouped: bool
) -> None:
    ranks = [
        TrainBatchSampler(
            size,
            4,
            lengths=list(range(size)) if grouped else None,
            rank=rank,
            num_replicas=replicas,
        )
        for rank in range(replicas)
    ]
    sizes = [[len(batch) for batch in rank] for rank in ranks]
    assert all(each == sizes[0] for each in sizes)
    assert all(len(rank) == len(sizes[0]) for rank in ranks)
    counts = Counter(index for rank in ranks for index in flat(rank))
    assert set(counts) == set(range(size))
    assert sum(counts.values()) == -(-size // replicas) * replicas


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("size", [50, 51, 53, 1, 8])
def test_without_repeats_a_step_is_the_same_for_any_number_of_ranks(
    size: int, grouped: bool
) -> None:
    lengths = [index * 7 % 11 for index in range(size)] if grouped else None
    one = list(TrainBatchSampler(size, 4, lengths=lengths))
    ranks = [
        TrainBatchSampler(size, 1, lengths=lengths, rank=rank, num_replicas=4) for rank in range(4)
    ]
    for step, parts in enumerate(zip(*ranks, strict=True)):
        kept = [
            part[: len(part) - (sampler.repeats and step == len(one) - 1)]
            for sampler, part in zip(ranks, parts, strict=True)
        ]
        assert sorted(index for part in kept for index in part) == sorted(one[step])


def test_order_follows_from_seed_stage_and_epoch_alone() -> None:
    def order(seed: int, stage: int, epoch: int) -> list[int]:
        torch.manual_seed(len(seen))
        sampler = TrainBatchSampler(40, 4, lengths=[1] * 40, seed=seed, stage=stage)
        sampler.set_epoch(epoch)
        return flat(sampler)

    seen: list[list[int]] = []
    for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]:
        seen.append(order(*key))
        assert order(*key) == seen[-1]
    assert len({tuple(each) for each in seen}) == 4


def test_global_generator_is_not_touched() -> None:
    before = torch.get_rng_state()
    list(TrainBatchSampler(40, 4, lengths=[1] * 40))
    assert torch.equal(torch.get_rng_state(), before)


def test_grouped_batches_have_similar_lengths_in_shuffled_order() -> None:
    lengths = torch.randint(0, 1000, (400,)).tolist()
    spread = {}
    for grouped in (True, False):
        batches = list(TrainBatchSampler(400, 8, lengths=lengths if grouped else None))
        of_batch = [[lengths[index] for index in batch] for batch in batches]
        spread[grouped] = sum(max(each) - min(each) for each in of_batch) / len(batches)
        means = [sum(each) / len(each) for each in of_batch]
        assert means != sorted(means)
    assert spread[True] < 0.1 * spread[False]


def test_start_leaves_out_the_first_batches() -> None:
    sampler = TrainBatchSampler(40, 4)
    whole = list(sampler)
    sampler.start = 3
    assert list(sampler) == whole[3:]
    assert len(sampler) == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0, "batch_size": 1}, "size 0 and batch_size 1 must be at least 1"),
        ({"size": 2, "batch_size": 0}, "size 2 and batch_size 0 must be at least 1"),
        ({"size": 2, "batch_size": 1, "lengths": [1]}, "1 lengths for 2 samples"),
        ({"size": 2, "batch_size": 1, "rank": 1}, "rank 1 is not below num_replicas 1"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainBatchSampler(**arguments)


@pytest.mark.parametrize("replicas", [1, 2, 3, 7])
def test_evaluation_shares_have_no_duplicates(replicas: int) -> None:
    indices = [5, 1, 9, 4, 8]
    shares = [split_batches(indices, 2, rank, replicas) for rank in range(replicas)]
    got = [index for share in shares for batch in share for index in batch]
    assert sorted(got) == sorted(indices)
    assert all(1 <= len(batch) <= 2 for share in shares for batch in share)
    if replicas == 1:
        assert shares[0] == [[5, 1], [9, 4], [8]]


def test_derived_seeds_differ_and_stay() -> None:
    seeds = {derive_seed(0, "a"), derive_seed(1, "a"), derive_seed(0, "b"), derive_seed("0", "a")}
    assert len(seeds) == 4
    assert derive_seed(0, "a") == derive_seed(0, "a")
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_samples_that_differ_in_a_short_answer_are_not_sorted_by_it() -> None:
    lengths = {
        approximate_length(Sample("x", (Turn("user", "which color?"), Turn("assistant", answer))))
        for answer in ("red", "gold", "turquoise", "a very dark green")
    }
    assert len(lengths) == 1


def listed_steps(size: int, batch: int, lengths: list[int] | None, ranks: int, seed: int) -> list:
    """The order computed with plain lists; interrupted runs resume in this order."""
    generator = torch.Generator().manual_seed(derive_seed(seed, 1, 2))
    order = torch.randperm(size, generator=generator).tolist()
    width = batch * ranks
    if lengths is None:
        return [order[begin : begin + width] for begin in range(0, len(order), width)]
    steps = []
    for begin in range(0, len(order), width * 50):
        chunk = sorted(order[begin : begin + width * 50], key=lengths.__getitem__)
        steps += [chunk[index : index + width] for index in range(0, len(chunk), width)]
    head = torch.randperm(len(steps) - 1, generator=generator).tolist()
    return [steps[index] for index in head] + steps[-1:]


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize(("size", "batch"), [(1, 1), (3, 4), (50, 1), (997, 3), (1000, 8)])
def test_arrays_keep_the_order_of_lists(size: int, batch: int, ranks: int, grouped: bool) -> None:
    lengths = [index * 7 % 5 for index in range(size)] if grouped else None
    expected = listed_steps(size, batch, lengths, ranks, seed=4)
    for rank in range(ranks):
        sampler = TrainBatchSampler(
            size, batch, lengths=lengths, seed=4, stage=1, rank=rank, num_replicas=ranks
        )
        sampler.set_epoch(2)
        batches = list(sampler)
        padded = [step + (step * ranks)[: -len(step) % ranks] for step in expected]
        assert batches == [step[rank::ranks] for step in padded]
        assert all(type(index) is int for each in batches for index in each)


@pytest.mark.parametrize("fraction", [0.01, 0.3, 1.0])
@pytest.mark.parametrize("size", [1, 10, 101])
def test_random_batches_are_the_first_of_a_whole_order(size: int, fraction: float) -> None:
    order = torch.randperm(size, generator=torch.Generator().manual_seed(5)).tolist()
    whole = split_batches(order, 4)
    expected = whole[: math.ceil(fraction * len(whole))]
    assert random_batches(size, 4, fraction, 5) == expected
