"""Segments of streams without task boundaries, found by a real router in made-up embeddings."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dmole.data import Task
from dmole.datamodule import ContinualDataModule
from dmole.routing import AutoencoderRouter
from dmole.streams import AutoStream
from dmole.streams.segments import Segmentation, Segmenter

WIDTH, SIZE = 16, 150
WINDOW, LIMIT, LEAST = 16, 0.5, 60


def embeddings(task: int, count: int = SIZE, seed: int = 0) -> Tensor:
    """Return the embeddings of a task: a blob far from those of other tasks."""
    generator = torch.Generator().manual_seed(10 * seed + task)
    rows = torch.randn(count, WIDTH, generator=generator)
    rows[:, task] += 12.0
    return rows


def segmented(rows: Tensor, chunk: int = 64) -> Segmentation:
    segmenter = Segmenter(AutoencoderRouter(components=4), WINDOW, LIMIT, LEAST)
    for part in rows.split(chunk):
        segmenter.add(part)
    return segmenter.finish()


@pytest.fixture(scope="module")
def three() -> Tensor:
    return torch.cat([embeddings(task) for task in range(3)])


@pytest.fixture(scope="module")
def found(three: Tensor) -> Segmentation:
    return segmented(three)


def test_each_task_becomes_a_segment_soon_after_it_begins(found: Segmentation) -> None:
    assert len(found.starts) == 3
    for segment, boundary in enumerate((SIZE, 2 * SIZE), start=1):
        assert abs(found.starts[segment] - boundary) <= 2
        assert 0 <= found.alarms[segment - 1] - boundary < WINDOW
    own = found.owner == np.arange(3).repeat(SIZE)
    assert own.mean() > 0.98


@pytest.mark.parametrize("chunk", [1, 37, 1000])
def test_segments_do_not_depend_on_how_samples_are_handed_over(
    three: Tensor, found: Segmentation, chunk: int
) -> None:
    again = segmented(three, chunk)
    assert (again.starts, again.alarms) == (found.starts, found.alarms)
    assert again.owner.tolist() == found.owner.tolist()


def test_later_samples_change_no_earlier_segment(three: Tensor, found: Segmentation) -> None:
    seen = found.alarms[1] + 1  # the second alarm is the last thing that has happened
    before = segmented(three[:seen])
    assert (before.starts, before.alarms) == (found.starts, found.alarms)
    assert before.owner.tolist() == found.owner[:seen].tolist()


def test_samples_of_a_task_that_returns_belong_to_its_first_segment() -> None:
    rows = [embeddings(0), embeddings(1), embeddings(0, seed=1), embeddings(2)]
    found = segmented(torch.cat(rows))
    assert len(found.starts) == 3
    assert abs(found.starts[2] - 3 * SIZE) <= 4
    returned = found.owner[2 * SIZE : 3 * SIZE - WINDOW]
    assert (returned == 0).mean() > 0.8
    assert not (found.owner[:SIZE] == 1).any()
    assert found.samples(0).tolist() == list(range(found.starts[1]))  # learned before they return


def test_a_stream_without_a_change_is_one_segment() -> None:
    found = segmented(embeddings(0, 600))
    assert (found.starts, found.alarms) == ((0,), ())


def test_a_stream_that_is_too_short_for_an_autoencoder_is_one_segment() -> None:
    found = segmented(embeddings(0, LEAST - 1))
    assert found.starts == (0,)
    assert found.owner.tolist() == [0] * (LEAST - 1)


# -- the stream ------------------------------------------------------------------------------

NAMES, SIZES = ("paint", "count", "read"), (6, 4, 2)
# the last sample of paint arrives in the second segment, the third segment splits count, and the
# first sample of read is accepted by the first expert, whose stage is over by then
OWNER = [0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 0, 2]
LEARNED_BY = [0, 0, 0, 0, 0, 1, 1, 1, 2, 2, None, 2]


@pytest.fixture
def stream() -> AutoStream:
    stream = AutoStream()
    stream.set_segments(Segmentation(np.array(OWNER), (0, 5, 8), (6, 9)), SIZES)
    return stream


@pytest.fixture
def data() -> ContinualDataModule:
    return ContinualDataModule(
        [
            Task(
                name,
                train=f"synthetic://{name}/train?size={size}",
                test=f"synthetic://{name}/test?size=1",
                repeat=2,
            )
            for name, size in zip(NAMES, SIZES, strict=True)
        ],
        batch_size=2,
    )


def test_a_segment_serves_the_samples_that_arrive_in_it_whatever_their_task(
    stream: AutoStream, data: ContinualDataModule
) -> None:
    stages = stream.stages(NAMES)
    assert [(s.index, s.name, s.expert) for s in stages] == [
        (i, f"segment_{i}", f"segment_{i}") for i in (1, 2, 3)
    ]
    served = [Counter((t, s.id) for s, t in data.arriving_items(stage)) for stage in stages]
    every = [(name, sample.id) for name in NAMES for sample in data.train_samples(name)]
    for segment, counts in enumerate(served):
        own = [key for key, learns in zip(every, LEARNED_BY, strict=True) if learns == segment]
        assert counts == Counter(dict.fromkeys(own, 2))  # `repeat` of every task is 2


def test_a_task_is_learned_by_the_segment_of_most_of_its_samples(stream: AutoStream) -> None:
    # half of count is in each of two segments: the first one counts. The third segment holds two
    # samples of count and one of read, which the first segment shares: it is listed under count.
    assert [stage.tasks for stage in stream.stages(NAMES)] == [
        ("paint", "read"),
        ("count",),
        ("count",),
    ]


def test_the_proxy_batches_of_a_segment_do_not_know_its_tasks(
    stream: AutoStream, data: ContinualDataModule, processors: dict[str, Any]
) -> None:
    data.attach_processor(processors["llava"])
    stage = stream.stages(NAMES)[1]
    groups = stage.draw.scored(stage.tasks)
    assert groups == [("count",)]
    batches = list(data.proxy_batches(stage, groups[0], 1.0, 0))
    names = Counter(n for batch in batches for part in batch for n in part.task_names)
    assert names == {"paint": 2, "count": 4}


def test_segments_return_from_a_checkpoint(stream: AutoStream) -> None:
    other = AutoStream()
    other.load_state_dict(stream.state_dict())
    assert other.segmentation.owner.tolist() == OWNER
    assert other.stages(NAMES)[2].tasks == ("count",)
    with pytest.raises(ValueError, match="the segments are of 3 tasks, not 2"):
        other.stages(NAMES[:2])
    other.load_state_dict({})
    assert not other.planned
    with pytest.raises(ValueError, match="are found when its run begins"):
        other.stages(NAMES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"starts": [0, 8, 5]}, "must ascend"),
        ({"starts": [1, 5, 8]}, "must ascend"),
        ({"alarms": [6]}, "do not fit"),
        ({"alarms": [4, 9]}, "do not fit"),
        ({"sizes": [6, 4, 3]}, "13 samples arrive"),
        ({"owner": torch.tensor([0, 0, 2, *OWNER[3:]])}, "do not fit"),
        ({"owner": torch.tensor([0] * 12)}, "do not fit"),
    ],
)
def test_segments_that_do_not_fit_together_are_refused(
    stream: AutoStream, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        AutoStream().load_state_dict(stream.state_dict() | change)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_segment": 1}, "min_segment must be at least 2"),
        ({"window": 1}, "window must be at least 2"),
        ({"limit": 0.01}, "limit must be at least"),
        ({"prefix": "a/b"}, "prefix"),
    ],
)
def test_settings_out_of_range_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AutoStream(**arguments)
