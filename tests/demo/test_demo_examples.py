from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest

from dmole.datamodule import ContinualDataModule
from dmole.demo import examples
from dmole.demo.examples import make_example

pytest.importorskip("easy_vqa", reason="the extra 'examples' is not installed")
pytest.importorskip("sklearn", reason="the extra 'examples' is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("example") / "deep" / "data"
    make_example(output, train_size=48, test_size=24)
    return output


@pytest.fixture(scope="module")
def data(folder: Path) -> ContinualDataModule:
    tasks = [
        examples.Task(name, train=f"{name}_train.json", test=f"{name}_test.json")
        for name in ("yes_no", "color", "shape", "digit", "larger")
    ]
    return ContinualDataModule(tasks, data_root=str(folder), verify_images=True)


def test_all_tasks_can_be_read_with_their_images(data: ContinualDataModule, folder: Path) -> None:
    data.check()
    for name in data.task_names:
        assert len(data.train_samples(name)) == 48
        assert len(data.test_samples(name)) == 24
        assert data.train_samples(name)[0].images[0].load().size == (64, 64)
    assert [path.name for path in folder.parent.iterdir()] == ["data"]  # no draft is left


def test_answers_are_lower_case_and_balanced(data: ContinualDataModule) -> None:
    kinds = {"yes_no": 2, "color": 8, "shape": 3, "digit": 10, "larger": 2}
    for name, kind in kinds.items():
        counts = Counter(sample.turns[-1].text for sample in data.train_samples(name))
        assert len(counts) == kind
        assert max(counts.values()) - min(counts.values()) <= 1
        references = {sample.references[0] for sample in data.test_samples(name)}
        assert references == set(counts)
        assert all(answer.islower() for answer in counts)


def test_train_and_test_share_no_picture(data: ContinualDataModule) -> None:
    for name in data.task_names:
        pictures = [
            {str(image) for sample in samples for image in sample.images}
            for samples in (data.train_samples(name), data.test_samples(name))
        ]
        assert not pictures[0] & pictures[1]


def test_larger_names_the_side_of_the_larger_digit(data: ContinualDataModule) -> None:
    from sklearn.datasets import load_digits

    target = load_digits().target
    for sample in data.train_samples("larger"):
        left, right = map(int, Path(str(sample.images[0].path)).stem.split("_"))  # type: ignore[attr-defined]
        expected = "left" if target[left] > target[right] else "right"
        assert sample.turns[-1].text == expected


@pytest.mark.slow
def test_the_seed_decides_what_is_written(tmp_path: Path, folder: Path) -> None:
    written = {}
    for seed in (0, 1):
        output = tmp_path / str(seed)
        output.mkdir()  # an empty folder is as good as none
        tasks = make_example(output, train_size=48, test_size=24, seed=seed)
        ContinualDataModule(tasks, data_root=str(output)).check()
        written[seed] = {path.name: path.read_bytes() for path in output.glob("*.json")}
    assert written[0] == {path.name: path.read_bytes() for path in folder.glob("*.json")}
    assert all(written[0][name] != written[1][name] for name in written[0])


def test_existing_data_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    for output in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(FileExistsError, match="exists already and is not an empty folder"):
            make_example(output)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        (tmp_path / "out").parent.mkdir(exist_ok=True)
        raise OSError("disk full")

    monkeypatch.setattr(examples, "_balanced", fail)
    with pytest.raises(OSError, match="disk full"):
        make_example(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["easy_vqa", "sklearn.datasets"])
def test_missing_packages_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install dmole\[examples\]"):
        make_example(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_sizes_below_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="train_size 0 and test_size 250 must be at least 1"):
        make_example(tmp_path / "out", train_size=0)
