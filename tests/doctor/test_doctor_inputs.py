"""Samples take the path of ``fit`` up to the model: the one that fails is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from families.processors import make_processor
from PIL import Image
from torch._utils import ExceptionWrapper

from dmole.data.collate import Collator
from dmole.data.sample import FileImage, Sample, Turn
from dmole.data.sample_errors import SampleError
from dmole.data.task import Task
from dmole.demo.tiny import TINY_PATH
from dmole.doctor import BaseModel, CheckOptions, TokenLimit, as_json, base_model, check_tasks
from dmole.doctor.inputs import spread

TASK = Task("t", train="train.json", test="test.json", max_new_tokens=4)


@pytest.fixture
def qwen(monkeypatch: pytest.MonkeyPatch) -> BaseModel:
    """A Qwen2-VL processor; the loading of folders is tested elsewhere."""
    processor = make_processor("qwen2_vl")
    for module in ("base_model", "inputs", "references", "tokens"):
        monkeypatch.setattr(f"dmole.doctor.{module}.load_processor", lambda model: processor)
    monkeypatch.setattr("dmole.doctor.check.context_length", lambda model: 400)
    return BaseModel("qwen")


def picture(path: Path, width: int, height: int) -> None:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write(root: Path, name: str, *items: dict[str, Any]) -> None:
    (root / f"{name}.json").write_text(json.dumps(items))


def item(id: str, image: str | None = None, text: str = "what ?", **keys: Any) -> dict[str, Any]:
    keys = {"answer": f"red {id}"} | keys | ({} if image is None else {"image": image})
    return {"id": id, "text": f"{text} {id}", **keys}


def check(root: Path, **options: Any) -> dict[str, Any]:
    return as_json(check_tasks([TASK], root, CheckOptions(**options)))


def found(report: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [(f["kind"], f["split"], f["item"]) for f in report["findings"]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, width, height in (("a", 56, 56), ("b", 60, 56), ("banner", 900, 4)):
        picture(tmp_path / f"{name}.png", width, height)
    write(tmp_path, "train", *(item(f"x{i}", "a.png") for i in range(6)))
    write(tmp_path, "test", *(item(f"y{i}", "b.png", answer=f"{i}") for i in range(3)))
    return tmp_path


@pytest.mark.parametrize("processes", [0, 2])
def test_an_image_that_the_processor_refuses_is_named_by_item(
    root: Path, qwen: BaseModel, processes: int
) -> None:
    write(root, "train", *(item(f"x{i}", "banner.png" if i == 4 else "a.png") for i in range(6)))
    report = check(root, model=qwen, processes=processes)
    assert found(report) == [("refused_sample", "train", 4)]
    assert "aspect ratio" in report["findings"][0]["message"]
    assert report["errors"] == 1


def test_text_that_a_processor_takes_for_a_video_is_named_by_item(
    root: Path, qwen: BaseModel
) -> None:
    video = make_processor("qwen2_vl").video_token
    write(root, "train", item("x0", "a.png"), item("x1", "a.png", f"what does {video} do ?"))
    assert found(check(root, model=qwen)) == [("refused_sample", "train", 1)]


def test_image_tokens_count_towards_the_limit(root: Path, qwen: BaseModel) -> None:
    text_only = check(root, model=qwen, decode_images=False)["tasks"][0]["splits"]["train"]
    report = check(root, model=qwen)
    whole = report["tasks"][0]["splits"]["train"]["tokens"]
    assert whole["samples"] == 6
    assert whole["max"] > text_only["tokens"]["max"]
    assert report["token_lengths_include_images"]
    limit = TokenLimit(whole["max"] - 1)
    assert ("too_long", "train", 0) in found(check(root, model=qwen, tokens=limit))


def test_a_prompt_that_leaves_no_room_for_the_answer_is_a_warning(
    root: Path, qwen: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest = check(root, model=qwen)["tasks"][0]["splits"]["test"]["tokens"]["max"]
    monkeypatch.setattr("dmole.doctor.check.context_length", lambda model: longest + 3)
    report = check(root, model=qwen, tokens=TokenLimit(400))
    assert ("beyond_context", "test", 0) in found(report)
    assert report["errors"] == 0


def test_a_part_of_the_items_is_run_on_demand(root: Path, qwen: BaseModel) -> None:
    write(root, "train", *(item(f"x{i}", "banner.png" if i == 4 else "a.png") for i in range(6)))
    report = check(root, model=qwen, items=2)
    assert report["tasks"][0]["splits"]["train"]["tokens"]["samples"] == 2
    assert found(report) == []
    assert report["tasks"][0]["splits"]["train"]["images"]["files"] == 2  # all are decoded


@pytest.mark.parametrize(("count", "most"), [(1, 1), (10, 3), (10, 10), (7, 5), (1000, 13)])
def test_chosen_items_are_as_many_as_said_and_spread(count: int, most: int) -> None:
    chosen = [index for index in range(count) if spread(index, count, most)]
    assert len(chosen) == most
    assert chosen[0] == 0
    assert max(np.diff([*chosen, count])) <= count / most + 1


def test_the_settings_of_the_image_processor_are_those_of_the_config(tmp_path: Path) -> None:
    settings = (("size", {"height": 32, "width": 32}),)
    with pytest.raises(ValueError, match="image setting 'no_size' is unknown"):
        base_model.load_processor.__wrapped__(
            BaseModel(str(TINY_PATH), image_settings=(("no_size", 3),))
        )
    made = base_model.load_processor.__wrapped__(BaseModel(str(TINY_PATH), image_settings=settings))
    assert dict(made.image_processor.size) == {"height": 32, "width": 32}


def sample(id: str, path: Path) -> tuple[Sample, str]:
    turns = (Turn("user", "<image>\nwhat ?"), Turn("assistant", "red"))
    return Sample(id, turns, (FileImage(path),)), "t"


def test_a_batch_that_the_processor_refuses_names_the_one_sample(root: Path) -> None:
    collator = Collator(make_processor("qwen2_vl"), origin=lambda sample, task: f"{task}.json")
    batch = [sample(f"x{i}", root / "a.png") for i in range(3)]
    batch.insert(2, sample("long", root / "banner.png"))
    text = r"^t\.json: sample 'long': the processor refuses it: .*ratio.* \(image .*banner\.png\)$"
    for generation in (False, True):
        with pytest.raises(ValueError, match=text):
            collator(batch, generation=generation)


def test_samples_that_only_fail_together_are_all_named(root: Path) -> None:
    processor = make_processor("qwen2_vl")

    class Single:
        """Takes one sample at a time."""

        def __getattr__(self, name: str) -> Any:
            return getattr(processor, name)

        def __call__(self, *, text: list[str], **options: Any) -> Any:
            if len(text) > 1:
                raise RuntimeError("shapes\ndiffer")
            return processor(text=text, **options)

    batch = [sample("x0", root / "a.png"), sample("x1", root / "b.png")]
    text = "^samples 'x0', 'x1' fit no common batch: .*shapes differ$"
    with pytest.raises(ValueError, match=text):
        Collator(Single())(batch, generation=False)


def test_an_error_from_a_worker_of_a_loader_is_one_line() -> None:
    try:
        raise SampleError("t.json: sample 'a': too wide") from ZeroDivisionError("a\nb")
    except SampleError:
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(SampleError) as caught:
        wrapped.reraise()
    assert str(caught.value) == "t.json: sample 'a': too wide"


def test_nested_image_settings_load_a_processor() -> None:
    settings = (("size", {"height": 32, "width": 32}),)
    model = BaseModel(str(TINY_PATH), image_settings=settings, image_backend="pil")
    assert base_model.load_processor(model).image_processor.size.height == 32
    assert base_model.load_processor(model) is base_model.load_processor(replace(model))
