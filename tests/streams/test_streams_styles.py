"""Which samples of a stage are in another style of answer."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from dmole import datamodule as module
from dmole.data import Task
from dmole.data.answer_styles import STYLES
from dmole.datamodule import ContinualDataModule
from dmole.streams import AnswerStyleStream, SequentialStream

NAMES = ("paint", "count")


def make(repeat: int = 1, seed: int = 0) -> ContinualDataModule:
    return ContinualDataModule(
        [
            Task(n, train=f"synthetic://{n}/train?size=24", repeat=repeat, test=f"{n}.json")
            for n in NAMES
        ],
        seed=seed,
        batch_size=2,
    )


def styles(stream: AnswerStyleStream, data: ContinualDataModule, index: int = 0) -> list[str]:
    """Return the style of each sample of a stage, by the words that it ends with."""
    ends = {"yes or no.": "yes_no", "right choice.": "choice", "a sentence.": "sentence"}
    return [
        next((name for end, name in ends.items() if sample.turns[-2].text.endswith(end)), "")
        for sample, _ in data.stage_items(stream.stages(NAMES)[index])
    ]


@pytest.mark.parametrize(("share", "count"), [(0.25, 6), (0.5, 12), (1.0, 24)])
def test_a_share_is_reworded_an_equal_part_to_each_style(share: float, count: int) -> None:
    for index in range(len(NAMES)):
        found = Counter(styles(AnswerStyleStream(share), make(), index))
        assert found[""] == 24 - count
        assert [found[style] for style in STYLES] == [count // 3] * 3
    one = Counter(styles(AnswerStyleStream(share, ["choice"]), make()))
    assert one["choice"] == count


def test_the_choice_follows_the_seed_and_is_the_same_in_each_repeat() -> None:
    first = styles(AnswerStyleStream(0.5), make())
    assert styles(AnswerStyleStream(0.5), make(repeat=2)) == first * 2
    assert styles(AnswerStyleStream(0.5), make(seed=1)) != first
    assert styles(AnswerStyleStream(0.5, seed=0), make(seed=1)) == first


def test_a_share_of_none_is_the_plain_stream() -> None:
    data = make()
    for ours, theirs in zip(
        AnswerStyleStream(0.0).stages(NAMES), SequentialStream().stages(NAMES), strict=True
    ):
        plain = data.stage_items(theirs)
        found = [(sample.id, sample.turns) for sample, _ in data.stage_items(ours)]
        assert found == [(sample.id, sample.turns) for sample, _ in plain]


def test_ranks_share_a_stage_without_duplicates(
    processors: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make()
    data.attach_processor(processors["llava"])
    data.set_stage(AnswerStyleStream(0.5).stages(NAMES)[1])
    served: list[str] = []
    for rank in range(2):
        monkeypatch.setattr(module, "_rank", lambda rank=rank: (rank, 2))
        served += [name for batch in data.train_dataloader() for name in batch.sample_ids]
    assert sorted(served) == sorted(sample.id for sample in data.train_samples("count"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"share": 1.5}, "share must be in"),
        ({"styles": []}, "styles must be some of yes_no, choice, sentence"),
        ({"styles": ["poem"]}, "styles must be some of"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AnswerStyleStream(**arguments)
