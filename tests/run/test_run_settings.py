"""Settings are what constructors were given; nothing else can make a resume be refused."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from dmole.allocation import SensitivityAllocator, UniformAllocator
from dmole.callbacks import Curriculum
from dmole.data import Task
from dmole.datamodule import ContinualDataModule
from dmole.models import PretrainedBackbone
from dmole.module import ContinualModule
from dmole.regularizers.base import Regularizer, Step
from dmole.routing import AutoencoderRouter, Router
from dmole.run.board import RunBoard
from dmole.run.checkpoint_file import read_checkpoint, save_checkpoint
from dmole.run.settings import (
    ADDED,
    RETIRED,
    brought_up_to_date,
    contrast,
    run_settings,
    stream_settings,
)
from dmole.run.state import SequenceState
from dmole.streams.stream import ReplayStream
from dmole.trainer import ContinualTrainer


class Penalty(Regularizer):
    """A user's regularizer: one argument, some state."""

    def __init__(self, weight: float = 0.5) -> None:
        super().__init__()
        self._weight = weight
        self.steps = 0

    def forward(self, step: Step) -> Tensor:
        return torch.zeros(())


def build(folder: Path, router: Router | None = None, **arguments: Any) -> ContinualTrainer:
    """Return a trainer that knows its data, and its module as ``trainer.built``."""
    trainer = ContinualTrainer(
        default_root_dir=str(folder), callbacks=[Curriculum("off")], accelerator="cpu"
    )
    task = Task(
        "paint", train="synthetic://paint/train?size=4", test="synthetic://paint/test?size=2"
    )
    trainer.sequence.data = ContinualDataModule([task])
    trainer.built = ContinualModule(  # type: ignore[attr-defined]
        PretrainedBackbone("tiny"),
        UniformAllocator(rank=2),
        router or AutoencoderRouter(),
        regularizers=[Penalty()],
        **arguments,
    )
    return trainer


def settings(trainer: Any) -> dict[str, str]:
    return run_settings(trainer.sequence, trainer.built)


def test_settings_are_the_arguments_of_all_parts(tmp_path: Path) -> None:
    found = settings(build(tmp_path, alpha=3.0, dropout=0.3))
    assert found["model setting 'alpha'"] == "3.0"
    assert "model setting 'generation'" not in found  # older checkpoints lack it
    assert found["setting 'dropout'"] == "0.3"
    assert found["allocator setting 'rank'"] == "2"
    assert found["router setting 'quantile'"] == "0.99"
    assert found["router setting 'threshold_scale'"] == "1.0"  # kept with an underscore
    assert found["router setting 'bank.reconstructor.components'"] == "128"  # of a part
    assert found["Penalty setting 'weight'"] == "0.5"
    assert found["Curriculum setting 'mode'"] == "off"
    assert found["max_new_tokens of task paint"] == "32"
    assert found["setting 'optimizer'"].startswith("AdamW [")


def test_settings_that_change_no_result_are_none_of_the_run(tmp_path: Path) -> None:
    trainer: Any = build(tmp_path)
    trainer.built.allocator = SensitivityAllocator(proxy_fraction=0.5, proxy_passes=4)
    found = settings(trainer)
    assert found["allocator setting 'proxy_fraction'"] == "0.5"
    assert "allocator setting 'proxy_passes'" not in found


def test_settings_of_generation_are_settings_of_the_run(tmp_path: Path) -> None:
    found = settings(build(tmp_path, generation={"repetition_penalty": 1.3}))
    assert found["model setting 'generation'"] == "[('repetition_penalty', 1.3)]"


def test_state_of_any_part_is_no_setting(tmp_path: Path) -> None:
    trainer: Any = build(tmp_path)
    before = settings(trainer)
    module = trainer.built
    parts = (module, module.allocator, module.router, *module.regularizers, *trainer.callbacks)
    for number, part in enumerate(parts):
        part.counter, part._position, part.note = number, number, f"{number} steps"
    assert settings(trainer) == before


def test_a_new_attribute_of_the_module_does_not_refuse_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attribute is there from the beginning, and another one when the run resumes."""

    def fit(number: int, ckpt_path: str | None) -> Path:
        trainer: Any = build(tmp_path)
        trainer.built.rounds = number
        monkeypatch.setattr(trainer, "_run_phase", lambda module, phase: None)
        trainer.fit(trainer.built, datamodule=trainer.sequence.data, ckpt_path=ckpt_path)
        return Path(trainer.run_dir)

    assert fit(1, None) == fit(2, "last")


def test_a_checkpoint_of_an_earlier_release_is_resumed_though_it_lists_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ContinualTrainer, "_run_phase", lambda *_: None)
    first: Any = build(tmp_path)
    first.fit(first.built, datamodule=first.sequence.data)
    file = first.run_dir / "checkpoints" / "last.ckpt"
    content = read_checkpoint(file)
    content["settings"] |= {f"model setting '{name}'": "1" for name in RETIRED}
    content["settings"]["router setting 'router.vision_width'"] = "128"
    save_checkpoint(content, file)
    again: Any = build(tmp_path)
    again.fit(again.built, datamodule=again.sequence.data, ckpt_path="last")
    content["settings"]["model setting 'width'"] = "1"
    save_checkpoint(content, file)
    other: Any = build(tmp_path)
    with pytest.raises(ValueError, match="was made with another model setting 'width'"):
        other.fit(other.built, datamodule=other.sequence.data, ckpt_path="last")


def test_a_retired_name_that_is_an_argument_is_compared() -> None:
    saved = {"Mine setting 'tasks'": "('a',)", "Mine setting 'due'": "3"}
    assert brought_up_to_date(saved, {"Mine setting 'tasks'": "('b',)"}) == {
        "Mine setting 'tasks'": "('a',)"
    }


def test_an_argument_that_a_checkpoint_lacks_had_the_value_of_its_time() -> None:
    key, inner = "router setting 'std_floor'", "router setting 'router.std_floor'"
    current = {key: "1.0", inner: "0.001", "router setting 'seed'": "1"}
    assert brought_up_to_date({}, current) == {key: "0.001", inner: "0.001"}
    assert brought_up_to_date({key: "0.5"}, {key: "1.0"}) == {key: "0.5"}
    rules = {"router setting 'ranking'": "likelihood", "allocator setting 'start'": "closest"}
    assert list(brought_up_to_date({}, rules).values()) == ["loss", "fresh"]


KEPT = Path(__file__).resolve().parents[2] / "docs" / "results" / "kept"


def test_arguments_that_kept_runs_lack_are_listed_with_the_value_of_their_time() -> None:
    lacking: dict[str, set[str]] = {}
    for file in KEPT.glob("*/version_0/config.yaml"):
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
        model, stream = config["model"], config["trainer"]["stream"]
        for part in (model["allocator"], model["router"], stream):
            module, _, name = part["class_path"].rpartition(".")
            arguments = inspect.signature(getattr(importlib.import_module(module), name)).parameters
            for new in arguments.keys() - part.get("init_args", {}).keys():
                lacking.setdefault(new, set()).add(str(arguments[new].default))
    assert lacking  # such as `score`
    assert {new: {ADDED.get(new)} for new in lacking} == lacking


@pytest.mark.parametrize(
    ("saved", "current", "message"),
    [
        ("8", "4", "checkpoint: 8; now: 4"),
        (None, "4", "checkpoint: None; now: 4"),
        ("A [('lr', 1), ('b', 2)]", "A [('lr', 1), ('b', 3)]", "checkpoint: 'b', 2; now: 'b', 3"),
    ],
)
def test_the_difference_of_two_settings_is_named(
    saved: str | None, current: str, message: str
) -> None:
    assert contrast(saved, current) == message


def test_a_stream_is_described_by_its_arguments() -> None:
    stream: Any = ReplayStream(buffer_size=4, share=0.5)
    stream.served = 7
    assert stream_settings(stream) == {
        "stream": "ReplayStream",
        "stream setting 'buffer_size'": "4",
        "stream setting 'share'": "0.5",
        "stream setting 'shared_expert'": "shared",
    }


def test_a_state_without_data_says_that_nothing_runs(tmp_path: Path) -> None:
    trainer: Any = ContinualTrainer(default_root_dir=str(tmp_path), accelerator="cpu")
    state = SequenceState(trainer, RunBoard(tmp_path, name="x"), ReplayStream(buffer_size=1))
    with pytest.raises(RuntimeError, match="no sequence is running"):
        _ = state.data
