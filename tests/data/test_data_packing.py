"""A batch that comes from a worker is the batch that the worker made."""

from __future__ import annotations

import copy
import pickle
import threading
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from families import make_samples
from torch import Tensor
from torch.utils.data import DataLoader

from dmole.data import shared_memory
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


@pytest.mark.parametrize("free", [2**40, 2**20])
def test_large_batches_come_through_the_pipe_where_shared_memory_is_short(
    free: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shared_memory, "sizes", lambda: (2**26, free))
    monkeypatch.setattr(shared_memory, "_warned", threading.Event())
    large = torch.arange(_SMALL, dtype=torch.int16)  # 1 MB
    loader = DataLoader(
        [Batch({"pixel_values": large + i}, None, {}, torch.ones(1), ["a"], ["t"]) for i in (0, 1)],
        batch_size=None,
        num_workers=2,
        multiprocessing_context="fork",
    )
    for i, batch in enumerate(loader):
        assert torch.equal(batch.inputs["pixel_values"], large + i)
        assert batch.image_counts.is_shared() == (free > 2**20)
    warnings = [record.getMessage() for record in caplog.records]
    assert (
        warnings == []
        if free > 2**20
        else [
            "/dev/shm has 64 MB, 1 MB of it free, too little for the batches of 1 MB from data "
            "workers: they come through pipes, which is slower; give the container more, as with "
            "docker run --shm-size=8g, or lower data.num_workers"
        ]
    )


@pytest.mark.parametrize(
    ("workers", "processes", "room"), [(1, 1, True), (2, 1, False), (1, 2, False)]
)
def test_all_workers_of_a_machine_share_its_memory(
    workers: int, processes: int, room: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_memory, "sizes", lambda: (2**26, 200))
    monkeypatch.setattr(shared_memory.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(shared_memory.dist, "get_world_size", lambda: processes)
    worker = SimpleNamespace(num_workers=workers)
    monkeypatch.setattr(shared_memory, "get_worker_info", lambda: worker)
    assert shared_memory.has_room(100) == room
    monkeypatch.setattr(shared_memory, "get_worker_info", lambda: None)
    assert shared_memory.has_room(100)  # what the main process pickles stays in its memory


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
