"""General data in each stage."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from dmole import datamodule as module
from dmole.data import Task
from dmole.data.decoding import ImageOptions
from dmole.datamodule import ContinualDataModule
from dmole.streams import GenericStream

NAMES = ("paint", "count")
SOURCE = "synthetic://general/train?size={}"


def make(stream: GenericStream, repeat: int = 1, size: int = 12) -> ContinualDataModule:
    tasks = [
        Task(n, train=f"synthetic://{n}/train?size={size}", test=f"{n}.json", repeat=repeat)
        for n in NAMES
    ]
    data = ContinualDataModule(tasks, batch_size=3)
    data.add_general(stream.general)
    return data


def general(data: ContinualDataModule, stream: GenericStream, index: int) -> list[str]:
    items = data.replayed_items(stream.stages(NAMES)[index])
    assert {task for _, task in items} == {"general"}
    return [sample.id for sample, _ in items]


@pytest.mark.parametrize(("share", "count"), [(0.1, 1), (0.25, 4), (0.5, 12)])
@pytest.mark.parametrize("repeat", [1, 2])
def test_a_share_of_each_stage_is_general(share: float, count: int, repeat: int) -> None:
    stream = GenericStream(SOURCE.format(40), share)
    data = make(stream, repeat)
    for stage in stream.stages(NAMES):
        items = data.stage_items(stage)
        own = [sample.id for sample, task in items if task in stage.tasks]
        assert len(own) == 12 * repeat
        # 2 x 12 samples: 0.1 of all is 2.67
        assert len(items) - len(own) == (count * repeat if share > 0.1 else round(1.334 * repeat))


def test_stages_draw_anew_by_seed_and_a_small_source_repeats_evenly() -> None:
    stream = GenericStream(SOURCE.format(5), 0.5)
    data = make(stream)
    first, second = (general(data, stream, index) for index in (0, 1))
    assert first != second
    assert sorted(Counter(first).values()) == [2, 2, 2, 3, 3]
    assert general(make(stream), stream, 1) == second
    other = GenericStream(SOURCE.format(5), 0.5, seed=3)
    assert general(make(other), other, 0) != first


def test_images_of_general_data_are_read_like_those_of_the_tasks() -> None:
    tasks = [Task("paint", train="synthetic://paint/train?size=4", test="paint.json")]
    data = ContinualDataModule(tasks, images=ImageOptions(background="white"))
    data.add_general(GenericStream("general.json").general)
    assert data.task("general").images == data.task("paint").images == data.images


def test_a_name_of_a_task_and_a_share_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="general data and a task have the same name 'Paint'"):
        make(GenericStream(SOURCE.format(5), name="Paint"))
    stream = GenericStream(SOURCE.format(5), 0.01)
    with pytest.raises(ValueError, match="is less than one general sample"):
        make(stream).stage_items(stream.stages(NAMES)[0])
    with pytest.raises(ValueError, match="share must be in"):
        GenericStream(SOURCE.format(5), 1.0)


def test_ranks_share_a_stage_without_duplicates(
    processors: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = GenericStream(SOURCE.format(40), 0.25)
    data = make(stream)
    data.attach_processor(processors["llava"])
    stage = stream.stages(NAMES)[0]
    data.set_stage(stage)
    served: list[str] = []
    for rank in range(2):
        monkeypatch.setattr(module, "_rank", lambda rank=rank: (rank, 2))
        served += [name for batch in data.train_dataloader() for name in batch.sample_ids]
    assert sorted(served) == sorted(sample.id for sample, _ in data.stage_items(stage))
