"""What the streams make of the data module's tasks."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dmole import datamodule as module
from dmole.data import ArrayImage, FileImage, Sample, Task, Turn
from dmole.data.sequences import SampleList, Selection
from dmole.datamodule import ContinualDataModule
from dmole.streams.stream import BlurredStream, ReplayStream, SequentialStream, Stream

NAMES = ("paint", "count", "read")
SIZES = (10, 14, 9)


def make(processor: Any = None, repeat: int = 1, **options: Any) -> ContinualDataModule:
    tasks = [
        Task(
            name,
            train=f"synthetic://{name}/train?size={size}",
            test=f"synthetic://{name}/test?size=2",
            repeat=repeat,
        )
        for name, size in zip(NAMES, SIZES, strict=True)
    ]
    tasks.append(Task("find", test="synthetic://find/test?size=2", eval_only=True))
    data = ContinualDataModule(tasks, **{"batch_size": 4} | options)
    if processor is not None:
        data.attach_processor(processor)
    return data


@pytest.fixture
def llava(processors: dict[str, Any]) -> Any:
    return processors["llava"]


def served(data: ContinualDataModule, stream: Stream, index: int, epoch: int = 0) -> list[str]:
    data.set_stage(stream.stages(data.training_task_names)[index - 1])
    loader = data.train_dataloader()
    loader.batch_sampler.set_epoch(epoch)
    return [sample for batch in loader for sample in batch.sample_ids]


def ids(items: Any) -> list[str]:
    return [sample.id for sample, _ in items]


@pytest.mark.parametrize("repeat", [1, 2])
def test_a_stream_without_blur_serves_the_clean_stream(llava: Any, repeat: int) -> None:
    for index in (1, 2, 3):
        for epoch in (0, 1):
            clean = served(make(llava, repeat), SequentialStream(), index, epoch)
            assert served(make(llava, repeat), BlurredStream(0.0), index, epoch) == clean


def test_the_first_stage_of_a_replay_is_that_of_the_clean_stream(llava: Any) -> None:
    stream = ReplayStream(buffer_size=3)
    assert served(make(llava), stream, 1) == served(make(llava), SequentialStream(), 1)


@pytest.mark.parametrize("workers", [0, 2])
def test_each_buffered_sample_comes_once_an_epoch(llava: Any, workers: int) -> None:
    data = make(llava, num_workers=workers)
    stream = ReplayStream(buffer_size=6)
    stage = stream.stages(data.training_task_names)[2]
    replayed = ids(data.replayed_items(stage))
    assert len(set(replayed)) == 6
    assert {name for _, name in data.replayed_items(stage)} <= {"paint", "count"}
    own = ids(data.arriving_items(stage))
    assert own == [sample.id for sample in data.train_samples("read")]
    for epoch in (0, 1):
        assert sorted(served(data, stream, 3, epoch)) == sorted(own + replayed)


def test_a_batch_tells_which_samples_are_replayed(llava: Any) -> None:
    data = make(llava)
    stage = ReplayStream(buffer_size=6).stages(NAMES)[2]
    data.set_stage(stage)
    foreign = [
        sample
        for batch in data.train_dataloader()
        for sample, task in zip(batch.sample_ids, batch.task_names, strict=True)
        if task not in stage.tasks
    ]
    assert sorted(foreign) == sorted(ids(data.replayed_items(stage)))


@pytest.mark.parametrize("stream", [ReplayStream(buffer_size=7), BlurredStream(0.4)])
def test_ranks_share_a_stage_without_duplicates(
    llava: Any, monkeypatch: pytest.MonkeyPatch, stream: Stream
) -> None:
    data = make(llava, batch_size=2)
    stage = stream.stages(NAMES)[1]
    whole = Counter(ids(data.stage_items(stage)))
    shares = []
    for rank in range(2):
        monkeypatch.setattr(module, "_rank", lambda rank=rank: (rank, 2))
        shares.append(served(data, stream, 2))
    repeated = sum(whole.values()) % 2  # an odd one is filled up and does not count
    assert len(shares[0]) == len(shares[1])
    if repeated:
        shares[1].pop()
    assert Counter(shares[0] + shares[1]) == whole


def test_large_files_are_drawn_from_as_small_ones_are(
    tmp_path: Path, llava: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        Image.new("RGB", (4, 4), "red").save(tmp_path / "red.png")
        rows = ",".join(
            f'{{"id": "{name}{i}", "text": "{"x" * i}?", "answer": "é", "image": "red.png"}}'
            for i in range(12)
        )
        (tmp_path / f"{name}.json").write_text(f"[{rows}]", encoding="utf-8")
    size = (tmp_path / "red.png").stat().st_size

    def drawn() -> list[Any]:
        tasks = [Task(name, train=f"{name}.json", test=f"{name}.json") for name in "ab"]
        data = ContinualDataModule(tasks, data_root=str(tmp_path), batch_size=4, num_workers=2)
        data.attach_processor(llava)
        stored = data.train_samples("a").stored_bytes()
        assert np.diff(stored).tolist() == [1] * 11
        assert stored[0] == size + len("<image>\n?") + 2  # é takes two bytes
        streams = [ReplayStream(buffer_size=5), ReplayStream(buffer_mb=5e-4), BlurredStream(0.4)]
        return [served(data, stream, 2) for stream in streams]

    small = drawn()
    monkeypatch.setenv("DMOLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("dmole.data.source.IN_MEMORY", 4)
    assert drawn() == small
    assert list((tmp_path / "cache").glob("*.arrow"))


def test_the_bytes_of_a_sample_are_its_images_and_turns(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"12345")
    turns = (Turn("user", "né"), Turn("assistant", "ok"))
    pixels = ArrayImage(np.zeros((2, 3, 3), np.uint8))
    images = (FileImage(tmp_path / "a.png"), FileImage(tmp_path / "a.png"), pixels)
    samples = SampleList([Sample("0", turns), Sample("1", turns, images)])
    assert samples.stored_bytes().tolist() == [5, 5 + 5 + 5 + 18]


def test_a_selection_is_read_in_its_order_and_travels_to_workers() -> None:
    samples = SampleList([Sample(str(i), (Turn("user", "x" * 128 * i),)) for i in range(4)])
    chosen = pickle.loads(pickle.dumps(Selection(samples, np.array([3, 0, 3]))))
    assert [sample.id for sample in chosen] == ["3", "0", "3"]
    assert chosen.lengths().tolist() == [3, 0, 3]
    assert chosen.at(1).id == "0"


def test_replay_takes_no_part_in_proxy_batches_and_blur_does(llava: Any) -> None:
    def names(stream: Stream) -> set[str]:
        data = make(llava)
        stage = stream.stages(data.training_task_names)[1]
        batches = data.proxy_batches(stage, ["count"], 1.0, 0)
        return {name for batch in batches for part in batch for name in part.task_names}

    assert names(SequentialStream()) == names(ReplayStream(buffer_size=9)) == {"count"}
    assert names(BlurredStream(0.4)) == set(NAMES)


def test_experts_are_shared_or_one_a_task() -> None:
    assert {s.expert for s in ReplayStream(buffer_size=1).stages(NAMES)} == {"shared"}
    for stream in (ReplayStream(None, buffer_mb=1.0), BlurredStream(0.1)):
        assert [stage.expert for stage in stream.stages(NAMES)] == list(NAMES)
    assert {s.expert for s in BlurredStream(0.1, "one").stages(NAMES)} == {"one"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs either buffer_size or buffer_mb, got None and None"),
        ({"buffer_size": 1, "buffer_mb": 1.0}, "needs either buffer_size or buffer_mb, got 1"),
        ({"buffer_size": 0}, "buffer_size must be at least 1, got 0"),
        ({"buffer_mb": 0.0}, "buffer_mb must be above 0 and finite, got 0.0"),
        ({"buffer_mb": float("nan")}, "buffer_mb must be above 0 and finite, got nan"),
        ({"buffer_size": 1, "share": 0.0}, r"share must be in \(0, 1\), got 0.0"),
        ({"buffer_size": 1, "share": 1.0}, r"share must be in \(0, 1\), got 1.0"),
        ({"shared_expert": "../x", "buffer_size": 1}, "shared_expert '../x' must be letters"),
    ],
)
def test_a_replay_that_cannot_be_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReplayStream(**options)


@pytest.mark.parametrize("beta", [-0.1, 1.0, float("nan")])
def test_a_share_out_of_range_is_refused(beta: float) -> None:
    with pytest.raises(ValueError, match=r"beta must be in \[0, 1\), got"):
        BlurredStream(beta)
