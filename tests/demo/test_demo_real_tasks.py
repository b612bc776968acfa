from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dmole.datamodule import ContinualDataModule
from dmole.demo.examples import make_example
from dmole.storage.yaml_file import read_yaml

pytest.importorskip("easy_vqa", reason="the extra 'examples' is not installed")
pytest.importorskip("sklearn", reason="the extra 'examples' is not installed")

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIGITS = ("digit_white", "digit_ink", "digit_color")
TASKS = (*DIGITS, "shape", "color", "digit_pair")
COLORS = {
    "black": (0, 0, 0),
    "blue": (0, 0, 255),
    "brown": (165, 42, 42),
    "gray": (128, 128, 128),
    "green": (0, 255, 0),
    "red": (255, 0, 0),
    "teal": (0, 128, 128),
    "yellow": (255, 255, 0),
}
"""The fills of easy-vqa's generator."""


class Item:
    """An item of a task file, with the pixels of its image."""

    def __init__(self, folder: Path, content: dict[str, Any]) -> None:
        question, answer = (turn["value"] for turn in content["conversations"])
        self.question, self.answer = question.removeprefix("<image>\n"), answer
        self.path = folder / content["image"]

    def pixels(self) -> np.ndarray[Any, Any]:
        return np.asarray(Image.open(self.path), dtype=int)


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], list[Item]]:
    folder = tmp_path_factory.mktemp("example") / "alike"
    tasks = make_example(folder, kind="alike", train_size=40, test_size=40)
    ContinualDataModule(tasks, data_root=str(folder), verify_images=True).check()
    return {
        (task.name, split): [
            Item(folder, content)
            for content in json.loads((folder / f"{task.name}_{split}.json").read_text())
        ]
        for task in tasks
        for split in ("train", "test")
    }


def test_six_tasks_share_the_question_but_for_one_word(
    items: dict[tuple[str, str], list[Item]],
) -> None:
    assert {name for name, _ in items} == set(TASKS)
    for (name, _), group in items.items():
        expected = "what color is shown?" if name == "color" else "what is shown?"
        assert {item.question for item in group} == {expected}
        assert len(group) == 40


def test_train_and_test_share_no_source(items: dict[tuple[str, str], list[Item]]) -> None:
    for name in TASKS:
        pictures = [{item.path.read_bytes() for item in items[name, s]} for s in ("train", "test")]
        assert [len(each) for each in pictures] == [40, 40], "an image is asked about twice"
        assert not pictures[0] & pictures[1]
    for name in (*DIGITS, "digit_pair"):
        used = [
            {int(index) for item in items[name, split] for index in item.path.stem.split("_")}
            for split in ("train", "test")
        ]
        assert max(used[0]) < 1297 <= min(used[1])


@pytest.mark.parametrize("name", DIGITS)
def test_the_answer_is_the_digit_on_its_own_ground(
    items: dict[tuple[str, str], list[Item]], name: str
) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    answers = list("0123456789") if name == "digit_color" else WORDS
    for item in items[name, "test"]:
        index = int(item.path.stem)
        assert item.answer == answers[digits.target[index]]
        pixels = item.pixels()
        ground = pixels[:, 0].mean(axis=0)  # no digit touches the left edge
        assert (pixels[:, 0] == ground).all()
        if name == "digit_white":
            assert ground.max() == 0
        elif name == "digit_ink":
            assert ground.min() > 190
        else:
            assert np.ptp(ground) > 60
        distance = np.abs(pixels - ground).sum(axis=2)
        assert _similarity(distance, digits.images[index]) > 0.95


def test_a_pair_is_named_from_left_to_right(items: dict[tuple[str, str], list[Item]]) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    for item in items["digit_pair", "test"]:
        both = [int(index) for index in item.path.stem.split("_")]
        assert item.answer == " ".join(WORDS[digits.target[index]] for index in both)
        gray = item.pixels()[:, :, 0]
        for half, index in zip((gray[:, :32], gray[:, 32:]), both, strict=True):
            assert _similarity(half, digits.images[index]) > 0.95
    firsts = Counter(item.answer.split()[0] for item in items["digit_pair", "train"])
    assert firsts == dict.fromkeys(WORDS, 4)


def test_shape_and_color_are_those_of_the_pixels(
    items: dict[tuple[str, str], list[Item]],
) -> None:
    for item in items["color", "test"]:
        assert (item.pixels() == COLORS[item.answer]).all(axis=2).sum() > 10
    for item in items["shape", "test"]:
        pixels = item.pixels()
        mask = np.any([(pixels == color).all(axis=2) for color in COLORS.values()], axis=0)
        rows, columns = np.nonzero(mask)
        box = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        filled = mask.sum() / box  # 1, pi / 4, 1 / 2
        shape = "rectangle" if filled > 0.95 else "circle" if filled > 0.68 else "triangle"
        assert item.answer == shape


def test_the_config_names_the_tasks_that_are_written() -> None:
    path = Path(__file__).parents[2] / "configs/benchmarks/alike_real.yaml"
    tasks = read_yaml(path)["data"]["tasks"]
    assert {task["name"] for task in tasks} == set(TASKS)
    for task in tasks:
        assert task["train"].partition("#")[0] == f"{task['name']}_train.json"
        assert task["test"] == f"{task['name']}_test.json"


def test_alike_data_replace_no_other_data(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="exists already and is not an empty folder"):
        make_example(tmp_path, kind="alike")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def _similarity(picture: np.ndarray[Any, Any], source: np.ndarray[Any, Any]) -> float:
    """Return the correlation of the picture, averaged to 8x8 cells, with the source."""
    height, width = (side // 8 for side in picture.shape)
    cells = picture.reshape(8, height, 8, width).mean(axis=(1, 3))
    return float(np.corrcoef(cells.ravel(), source.ravel())[0, 1])
