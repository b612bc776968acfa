"""Every benchmark's config reads its own layout, in miniature."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dmole.benchmarks.layouts.guides import GUIDES
from dmole.benchmarks.layouts.init import init_benchmark
from dmole.benchmarks.layouts.published import SIZES
from dmole.benchmarks.registry import metric_of_task
from dmole.cli.main import main
from dmole.data import Task
from dmole.store import SampleStore

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
BENCHMARKS = sorted(GUIDES)


def tasks_of(name: str, key: str = "tasks") -> list[dict[str, Any]]:
    return yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))["data"][key]


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("miniatures")

    def make(name: str) -> Path:
        if not (folder / name).exists():
            init_benchmark(name, folder / name, miniature=True)
        return folder / name

    return make


def move(root: Path, old: str, new: str) -> None:
    (root / new).parent.mkdir(parents=True, exist_ok=True)
    shutil.move(root / old, root / new)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_config_reads_every_file_of_its_benchmark(miniature, name):
    tasks = [Task(**task) for task in tasks_of(name) + tasks_of("retention", "tasks+")]
    store = SampleStore(tasks, miniature(name))
    store.check(decode_images=True)
    for task in tasks:
        assert len(store.samples(task.name, "test")) == (8 if task.name == "MME" else 4)
        if not task.eval_only:
            assert len(store.samples(task.name, "train")) == 8
    assert len(store.training_task_names) == {"cmit": 9, "coin": 8, "mllm_dcl": 5, "ucit": 6}[name]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_config_names_no_folder_outside_the_data_root(name):
    for task in tasks_of(name):
        paths = [task["train"], task["test"], task["image_root"]]
        for path in [*paths, *task.get("side_files", {}).values()]:
            assert not Path(path.strip("{")).is_absolute()


def variant(miniature: Callable[[str], Path], name: str, tmp_path: Path) -> Path:
    return shutil.copytree(miniature(name), tmp_path / "variant")


def check(name: str, root: Path) -> None:
    SampleStore([Task(**task) for task in tasks_of(name)], root).check(decode_images=False)


@pytest.mark.parametrize("folder", ["Instructions_Original", "Instruction_Original"])
def test_coin_is_found_without_its_outer_folders(miniature, tmp_path, folder):
    root = variant(miniature, "coin", tmp_path)
    move(root, "playground/Instructions_Original", folder)
    for path in list((root / "cl_dataset").iterdir()):
        move(root, f"cl_dataset/{path.name}", path.name)
    (root / "cl_dataset").rmdir()
    move(root, f"{folder}/VizWiz/val.json", f"{folder}/VizWiz/test.json")
    check("coin", root)


def test_ucit_is_found_under_the_names_of_hide(miniature, tmp_path):
    root = variant(miniature, "ucit", tmp_path)
    for old, new in (
        ("CLEVR-Math", "instructions/CLEVR"),
        ("VizWiz-caption", "instructions/VizWiz"),
        ("Flickr30k-cap", "instructions/Flickr30k"),
        ("IconQA", "instructions/IconQA"),
    ):
        move(root, old, new)
    move(root, "instructions/CLEVR/train_4w.json", "instructions/CLEVR/train.json")
    move(root, "ImageNet-R/test_3000.json", "ImageNet-R/test.json")
    check("ucit", root)


def test_a_benchmark_that_is_not_there_is_told_with_the_places_looked_at(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        check("coin", tmp_path)
    message = str(caught.value)
    assert f"{tmp_path}/playground/Instructions_Original/ScienceQA/train.json" in message
    assert "\n" not in message


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_metric_of_a_task_is_that_which_score_takes_for_it(name):
    for task in tasks_of(name):
        assert task["metric"] == metric_of_task(f"{name}/{task['name']}")


# -- dmole data init ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", BENCHMARKS)
def test_init_makes_folders_and_a_guide(tmp_path, capsys, name):
    root = tmp_path / "new" / name
    assert main(["data", "init", name, str(root)]) == 0
    assert str(root / "README.md") in capsys.readouterr().out
    guide = (root / "README.md").read_text(encoding="utf-8")
    assert f"dmole fit --config {name}.yaml" in guide
    files = [path for path in root.rglob("*") if path.is_file()]
    assert files == [root / "README.md"]
    assert all((root / folder).is_dir() for folder in GUIDES[name].folders)
    assert [path.name for path in tmp_path.joinpath("new").iterdir()] == [name]


def test_init_leaves_a_folder_alone_unless_forced(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("precious")
    (tmp_path / "Domain_data" / "RS").mkdir(parents=True)
    assert main(["data", "init", "mllm_dcl", str(tmp_path)]) == 1
    assert "--force adds what is missing" in capsys.readouterr().err
    assert not (tmp_path / "README.md").exists()
    assert main(["data", "init", "mllm_dcl", str(tmp_path), "--force"]) == 0
    assert "4 folders made" in capsys.readouterr().out
    assert (tmp_path / "mine.txt").read_text() == "precious"


@pytest.mark.parametrize(
    ("words", "culprit"),
    [
        (["coi", "x"], "no benchmark 'coi', there are cmit, coin, mllm_dcl, ucit"),
        (["coin", "x", "--miniature", "--force"], "--miniature without --force"),
        (["coin", "file"], "file exists and is not an empty folder"),
        (["coin"], "output"),
    ],
)
def test_a_fault_of_init_is_one_line_and_writes_nothing(
    tmp_path, monkeypatch, capsys, words, culprit
):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("x")
    assert main(["data", "init", *words]) == 1
    error = capsys.readouterr().err
    assert culprit in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_interrupted_miniature_leaves_nothing_behind(tmp_path, monkeypatch):
    from dmole.benchmarks.layouts import miniature

    def fail(writer: Any) -> None:
        writer.text("half.json", "")
        raise KeyboardInterrupt

    monkeypatch.setitem(miniature.MINIATURES, "coin", fail)
    with pytest.raises(KeyboardInterrupt):
        init_benchmark("coin", tmp_path / "coin", miniature=True)
    assert list(tmp_path.iterdir()) == []


# -- published sizes ---------------------------------------------------------------------------


def test_published_sizes_are_of_tasks_that_the_configs_have():
    assert sorted(SIZES) == BENCHMARKS
    for name, sizes in SIZES.items():
        assert set(sizes) == {task["name"] for task in tasks_of(name)}
        assert all(task["benchmark"] == f"{name}/{task['name']}" for task in tasks_of(name))
        for splits in sizes.values():
            assert set(splits) <= {"train", "test"}
            assert all(size.items > 0 and size.source for size in splits.values())
