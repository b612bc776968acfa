"""A batch that comes from a worker is the batch that the worker made."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from families import make_samples
from torch import Tensor

from dmole.data.batch import Batch
from dmole.data.collate import Collator, TaskSample
from dmole.data.loader import sequential_loader
from dmole.data.packing import _SMALL, pack, unpack
from dmole.data.window import Counts, Window


@pytest.mark.parametrize("length", [3, _SMALL])  # through the pipe, through shared memory
def test_unpacked_tensors_are_the_packed_ones_and_do_not_affect_each_other(length: int) -> None:
    tensors = [
        torch.arange(length, dtype=torch.uint8),
        torch.tensor([True, False, True]),
        torch.randn(2, 3, dtype=torch.bfloat16).t(),
        torch.zeros(0, 5),
        torch.tensor(7),
        torch.randn(3, 1, 2, dtype=torch.float64),
    ]
    buffer, slots = pack(tensors)
    assert isinstance(buffer, np.ndarray if length == 3 else Tensor)
    found = unpack(buffer, slots)
    for one, other in zip(found, tensors, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
        assert one.is_contiguous()
        assert one.data_ptr() % one.element_size() == 0
    versions = [tensor._version for tensor in found]
    found[0].fill_(9)
    assert [tensor._version for tensor in found[1:]] == versions[1:]
    assert torch.equal(found[5], tensors[5])


def test_a_copied_batch_has_every_field() -> None:
    counts = Counts(1, 1, 2, 1, 1)
    batch = Batch(
        inputs={"input_ids": torch.ones(1, 2, dtype=torch.long)},
        labels=None,
        question={"input_ids": torch.zeros(1, 1, dtype=torch.long)},
        image_counts=torch.tensor([0]),
        sample_ids=["a"],
        task_names=["t"],
        window=Window(counts, counts, True),
    )
    labelled = replace(batch, labels=torch.full((1, 2), -100))
    for one in (batch, labelled):
        for other in (pickle.loads(pickle.dumps(one)), copy.deepcopy(one)):
            assert_same(other, one)


@pytest.mark.parametrize("generation", [False, True])
def test_batches_of_workers_are_those_of_the_main_process(
    processors: dict[str, Any], generation: bool
) -> None:
    samples = make_samples((1, 0, 2, 1), answers=not generation)
    items: list[TaskSample] = [(sample, "t") for sample in samples]
    collator = Collator(processors["llava_next"])
    read = [
        list(
            sequential_loader(
                items, collator, batches=[[0, 1], [2], [3]], generation=generation, num_workers=n
            )
        )
        for n in (0, 2)
    ]
    for one, other in zip(*read, strict=True):
        assert_same(one, other)


def assert_same(one: Batch, other: Batch) -> None:
    for key in ("labels", "sample_ids", "task_names", "window", "inputs", "question"):
        a, b = (getattr(batch, key) for batch in (one, other))
        if not isinstance(a, dict):
            a, b = {key: a}, {key: b}
        assert a.keys() == b.keys()
        for name in a:
            same = torch.equal if isinstance(a[name], Tensor) else lambda x, y: x == y
            assert same(a[name], b[name]), (key, name)
    assert torch.equal(one.image_counts, other.image_counts)
