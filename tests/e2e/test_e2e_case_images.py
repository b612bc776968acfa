"""The images of test samples that a run keeps for its report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_runs import Recipe

from dmole.data import Task
from dmole.storage.case_images import FILE, read_case_images


def image_task(folder: Path, name: str) -> Task:
    """Return a task of four samples whose images lie in a folder."""
    items = []
    for index in range(4):
        pixels = np.full((40, 40, 3), 40 * index, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}{index}.png")
        turns = [{"from": "human", "value": "<image>\nhow?"}, {"from": "gpt", "value": "so"}]
        image = f"{name}{index}.png"
        items.append({"id": str(index), "image": image, "conversations": turns})
    file = folder / f"{name}.json"
    file.write_text(json.dumps(items))
    test = Path(shutil.copy(file, folder / f"{name}_test.json"))
    return Task(name, str(file), str(test), image_root=str(folder), max_new_tokens=2)


def test_a_run_keeps_the_images_of_chosen_samples_and_an_evaluation_none(
    plain_run: Path, tmp_path: Path
) -> None:
    found = read_case_images(plain_run)
    names = {task: [f"{task}-test-0-{i}" for i in range(4)] for task in ("paint", "count")}
    assert {task: list(cases) for task, cases in found.items()} == names
    assert all(case.images for cases in found.values() for case in cases.values())
    some = Recipe(trainer={"case_images": 3}).build(tmp_path).fit()
    assert [len(cases) for cases in read_case_images(some).values()] == [3, 3]
    built = Recipe().build(tmp_path)
    built.trainer.evaluate(built.module, built.data, run=some, output=tmp_path / "again")
    assert not (tmp_path / "again" / FILE).exists()


def test_no_images_are_kept_if_none_are_wanted(tmp_path: Path) -> None:
    run = Recipe(["paint"], trainer={"case_images": 0}).build(tmp_path).fit()
    assert not (run / FILE).exists()
    with pytest.raises(ValueError, match="case_images must be at least 0, got -1"):
        Recipe(trainer={"case_images": -1}).build(tmp_path)


def test_lost_images_are_made_again_and_those_of_data_that_are_gone_stay(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tasks = [image_task(tmp_path, name) for name in ("first", "second")]
    parent = Recipe(tasks[:1]).build(tmp_path / "parent").fit()
    content = (parent / FILE).read_bytes()
    (parent / FILE).write_bytes(content.replace(b'"id": "0"', b'"id": "9"'))
    Recipe(tasks[:1]).build(tmp_path / "parent").fit(parent)
    assert (parent / FILE).read_bytes() == content
    for path in (Path(str(tasks[0].train)), Path(str(tasks[0].test))):
        path.unlink()
    run = Recipe(tasks).build(tmp_path / "runs").fit(parent)
    assert (run / FILE).read_bytes().startswith(content)
    assert {task: len(cases) for task, cases in read_case_images(run).items()} == {
        "first": 4,
        "second": 4,
    }
    assert FILE not in "".join(r.getMessage() for r in caplog.records if r.levelname == "WARNING")


def test_an_image_that_cannot_be_decoded_is_left_out_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task = image_task(tmp_path, "first")
    parent = Recipe([task]).build(tmp_path).fit()
    (parent / FILE).unlink()
    path = tmp_path / "first1.png"
    path.write_bytes(b"\0" * path.stat().st_size)
    Recipe([task]).build(tmp_path).fit(parent)
    assert [len(case.images) for case in read_case_images(parent)["first"].values()] == [1, 0, 1, 1]
    lines = [r.getMessage() for r in caplog.records if FILE in r.getMessage() and r.levelno > 20]
    assert len(lines) == 1
    assert f"{FILE} lacks images that cannot be decoded: 1 (cannot read image {path}" in lines[0]
