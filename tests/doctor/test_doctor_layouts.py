"""`dmole data check` reads what tasks read: every layout, its side files and its images."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dmole.benchmarks.init import guided_benchmarks, init_benchmark
from dmole.benchmarks.registry import BENCHMARKS as ALL
from dmole.cli.main import main
from dmole.data import Task
from dmole.data.paths import alternatives
from dmole.doctor import CheckOptions, as_json, check_tasks

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
BENCHMARKS = guided_benchmarks()


def tasks_of(name: str, key: str = "tasks") -> list[Task]:
    entries = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))["data"][key]
    return [Task(**entry) for entry in entries]


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("miniatures")

    def make(name: str) -> Path:
        if not (folder / name).exists():
            init_benchmark(name, folder / name, miniature=True)
        return folder / name

    return make


def report_of(tasks: list[Task], root: Path, **options: Any) -> dict[str, Any]:
    return as_json(check_tasks(tasks, root, CheckOptions(**options)))


@pytest.mark.parametrize(
    "name",  # METEOR of UCIT starts a Java process for each task
    [
        pytest.param(name, marks=pytest.mark.slow if name in ("ucit", "cmit") else ())
        for name in BENCHMARKS
    ],
)
def test_a_whole_benchmark_is_examined(
    miniature: Callable[[str], Path], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    words = ["data", "check", "--config", f"{name}.yaml", "--config", "retention.yaml"]
    words += ["--data.data_root", str(miniature(name)), "--no_tokens", "--processes", "0"]
    assert main([*words, "--json", "-"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["errors"] == 0
    tasks = {task["name"]: task["splits"] for task in report["tasks"]}
    for task in tasks_of(name):
        splits = tasks[task.name]
        assert (splits["train"]["items"], splits["test"]["items"]) == (8, 4)
        assert all(split["complete"] and split["images"]["files"] for split in splits.values())
        assert splits["test"]["answers"]["total"] == 4
    assert {task.name for task in tasks_of("retention", "tasks+")} <= tasks.keys()
    assert list(tasks["POPE-random"]) == ["test"]
    findings = [finding for finding in report["findings"] if finding["kind"] == "split_size"]
    assert {finding["task"] for finding in findings} == {
        t for t, sizes in ALL[name].sizes.items() if sizes
    }
    assert all(f"({name}/{finding['task']})" in finding["message"] for finding in findings)


@pytest.mark.parametrize("name", ["cmit", "coin", "ucit"])
def test_a_side_file_that_is_missing_is_one_finding(
    miniature: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    root = shutil.copytree(miniature(name), tmp_path / "x")
    sided = [task for task in tasks_of(name) if task.side_files]
    assert sided
    for task in sided:
        for key, pattern in task.side_files.items():
            file = next(root / path for path in alternatives(pattern) if (root / path).exists())
            file.rename(tmp_path / "aside")
            (finding,) = errors(report_of([task], root))
            assert (finding["kind"], finding["split"]) == ("file", "test")
            assert finding["message"].startswith(f"task {task.name!r}: side file {key!r}")
            (tmp_path / "aside").rename(file)


def errors(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [finding for finding in report["findings"] if finding["level"] == "error"]


@pytest.mark.parametrize("processes", [0, 2])
def test_processes_change_nothing_in_published_files(
    miniature: Callable[[str], Path], processes: int
) -> None:
    tasks = tasks_of("coin") + tasks_of("retention", "tasks+")
    alone = report_of(tasks, miniature("coin"), limit=3)
    assert report_of(tasks, miniature("coin"), limit=3, processes=processes) == alone


def test_missing_files_are_told_with_the_places_looked_at(tmp_path: Path) -> None:
    report = report_of(tasks_of("coin")[:1], tmp_path)
    assert [finding["kind"] for finding in report["findings"]] == ["file", "file"]
    train = report["findings"][0]
    assert train["file"].endswith("playground/Instructions_Original/ScienceQA/train.json")
    assert "none of these exists" in train["message"]


def test_a_wording_that_an_item_cannot_fill_is_named(tmp_path: Path) -> None:
    items = [{"id": "a", "text": "x ?", "answer": "y"}, {"id": "b", "text": "z ?", "answer": "y"}]
    (tmp_path / "train.json").write_text(json.dumps(items))
    (tmp_path / "test.json").write_text(json.dumps([items[0] | {"topic": "t"}, items[1]]))
    task = Task("t", train="train.json", test="test.json", prompt="{question} {topic}")
    found = {
        finding["split"]: finding["message"] for finding in errors(report_of([task], tmp_path))
    }
    assert found["train"].startswith("item 0 (id 'a'): has no text 'topic'")
    assert found["test"].startswith("item 1 (id 'b'): has no text 'topic'")


def test_an_image_folder_that_is_missing_is_one_finding_a_split(
    miniature: Callable[[str], Path], tmp_path: Path
) -> None:
    (task, *_) = [task for task in tasks_of("cmit") if task.test_image_root]
    root = shutil.copytree(miniature("cmit"), tmp_path / "cmit")
    assert task.test_image_root is not None
    shutil.rmtree(root / task.test_image_root)
    (finding,) = errors(report_of([task], root))
    assert finding["split"] == "test"
    assert "image folder" in finding["message"]


def test_lengths_are_of_the_rendered_questions(tmp_path: Path) -> None:
    from dmole.demo.tiny import TINY_PATH
    from dmole.doctor import BaseModel

    items = [{"id": "a", "text": "x ?", "answer": "y"}]
    for split in ("train", "test"):
        (tmp_path / f"{split}.json").write_text(json.dumps(items))
    lengths = []
    for prompt in (None, "{question} in one word, please."):
        task = Task("t", train="train.json", test="test.json", prompt=prompt)
        report = report_of([task], tmp_path, model=BaseModel(str(TINY_PATH)))
        lengths.append(report["tasks"][0]["splits"]["test"]["tokens"]["max"])
    assert lengths[0] < lengths[1]
