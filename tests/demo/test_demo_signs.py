"""Tasks that differ in a sign alone."""

from __future__ import annotations

import random
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from dmole.cli.main import main
from dmole.datamodule import ContinualDataModule
from dmole.demo import photographs
from dmole.demo.examples import make_example
from dmole.demo.world import synthetic_samples
from dmole.demo.world.signs import OPPOSITE, SIGN_TASKS, WORDING, sign_scene
from dmole.demo.world.world import CELL

BENCHMARKS = Path(__file__).parents[2] / "configs/benchmarks"


def test_two_signs_on_one_picture_differ_in_the_pixels_of_the_sign_alone() -> None:
    for seed in range(20):
        one, other = (sign_scene(random.Random(seed), sign) for sign in "AX")
        assert (one.large, one.small, one.side) == (other.large, other.small, other.side)
        differing = np.argwhere((one.pixels != other.pixels).any(-1))
        assert len(differing)
        assert (np.ptp(differing, axis=0) < (4 * CELL, 3 * CELL)).all()  # rows, columns


def test_all_tasks_have_one_question_and_no_two_have_one_sign() -> None:
    signs = [sign for sign, _ in SIGN_TASKS.values()]
    assert len({*signs}) == len(signs) == 8
    for task in SIGN_TASKS:
        assert {s.prompt for s in synthetic_samples(f"synthetic://{task}/test?size=20")} == {
            WORDING
        }


def test_pairs_share_words_or_contradict_each_other() -> None:
    answers = {name: answer for name, (_, answer) in SIGN_TASKS.items()}
    seen: dict[str, set[str]] = {name: set() for name in answers}
    turned: dict[str, Counter[str]] = {}
    for seed in range(300):
        scene = sign_scene(random.Random(seed), "A")
        given = {name: answer(scene) for name, answer in answers.items()}
        for name, word in given.items():
            seen[name].add(word)
        assert given["sign_side_turned"] == OPPOSITE[given["sign_side"]]
        assert given["sign_form_turned"] != given["sign_form"]
        turned.setdefault(given["sign_form"], Counter())[given["sign_form_turned"]] += 1
        assert given["sign_paint_large"] != given["sign_paint_small"]
    assert all(len(words) == 1 for words in turned.values())  # a rule
    for one, other in (("paint_large", "paint_small"), ("form", "form_turned")):
        assert seen[f"sign_{one}"] == seen[f"sign_{other}"]
    assert len(seen["sign_place_large"] & seen["sign_place_small"]) >= 8


@pytest.mark.parametrize("name", ["one_wording", "one_wording_few", "one_wording_real"])
def test_a_config_has_the_tasks(name: str) -> None:
    tasks = yaml.safe_load((BENCHMARKS / f"{name}.yaml").read_text())["data"]["tasks"]
    names = [task["name"] for task in tasks]
    if name != "one_wording_real":
        assert {f"sign_{task}" for task in names} == {*SIGN_TASKS}
        assert all(f"//sign_{task['name']}/" in task["train"] for task in tasks)
    else:
        assert names == [*photographs.PHOTO_TASKS]


@pytest.fixture
def stamps(tmp_path: Path) -> Path:
    """A folder as the package has it: a cut-out of one color in each file."""
    for index, folder in enumerate(photographs.KINDS.values()):
        for number in range(8):
            path = tmp_path / "stamps" / folder / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = Image.new("RGBA", (90, 60))
            image.paste((40 * index, 20 * number, 200, 255), (10, 10, 70, 50))
            image.save(path)
        cartoon = tmp_path / "stamps" / folder / "cartoon" / "drawn.png"
        cartoon.parent.mkdir()
        image.save(cartoon)
    return tmp_path / "stamps"


def test_test_pictures_show_photographs_that_no_training_picture_shows(stamps: Path) -> None:
    train, test = (photographs.photographs(stamps, split) for split in ("train", "test"))
    for kind in photographs.KINDS:
        assert (len(train[kind]), len(test[kind])) == (6, 2)
        assert not {*train[kind]} & {*test[kind]}
        assert not any("cartoon" in str(path) for path in train[kind] + test[kind])


def test_the_tasks_about_photographs_are_written(
    stamps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dmole.demo.examples.unpack", lambda folder, package: stamps)
    tasks = make_example(tmp_path / "data", kind="one_wording", train_size=6, test_size=3)
    assert [task.name for task in tasks] == [*photographs.PHOTO_TASKS]
    data = ContinualDataModule(tasks, data_root=str(tmp_path / "data"))
    for name in data.task_names:
        samples = data.train_samples(name)
        assert len(samples) == 6
        assert {sample.prompt for sample in samples} == {WORDING}
        assert samples[0].images[0].load().size == (64, 64)
    with pytest.raises(ValueError, match=r"kind must be one of .*, got 'other'"):
        make_example(tmp_path / "other", kind="other")  # type: ignore[arg-type]
    assert main(["data", "make-example", str(tmp_path / "other"), "--alike", "--one_wording"]) != 0


def test_a_package_that_cannot_be_had_is_an_error_of_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(FileNotFoundError, match=r"no\.deb: there is no such package"):
        photographs.unpack(tmp_path, tmp_path / "no.deb")
    (tmp_path / "bad.deb").write_text("bad")
    failed = subprocess.CompletedProcess([], 2, stderr="bad.deb is no\narchive\n")
    monkeypatch.setattr(photographs.shutil, "which", lambda program: program)
    monkeypatch.setattr(photographs.subprocess, "run", lambda *words, **options: failed)
    output = str(tmp_path / "made")
    package = str(tmp_path / "bad.deb")
    words = ["data", "make-example", output, "--one_wording", "--package", package]
    assert main(words) == 1
    line = capsys.readouterr().err
    assert line.startswith("dmole: dpkg-deb --extract")
    assert "bad.deb is no archive" in line
    assert line.count("\n") == 1
    monkeypatch.setattr(photographs.shutil, "which", lambda program: None)
    with pytest.raises(FileNotFoundError, match="dpkg-deb is missing: download the Debian package"):
        photographs.unpack(tmp_path, tmp_path / "bad.deb")
