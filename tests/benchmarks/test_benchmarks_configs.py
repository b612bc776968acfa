"""Every benchmark's config reads its own layout, in miniature."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from benchmark_table import ADDED, LEARNED, ROWS, Row

from dmole.benchmarks.benchmark import Benchmark
from dmole.benchmarks.init import guided_benchmarks, init_benchmark
from dmole.benchmarks.registry import BENCHMARKS, LAYOUTS, benchmark_tasks, build_metric
from dmole.benchmarks.shared.miniature import Miniature
from dmole.benchmarks.sizes import published_sizes
from dmole.cli.main import main
from dmole.data import Task
from dmole.store import SampleStore

METRICS_PAGE = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
Make = Callable[[str], Path]

each_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
each_learned = pytest.mark.parametrize("row", LEARNED, ids=lambda row: row.name)


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Make:
    folder = tmp_path_factory.mktemp("miniatures")

    def make(name: str) -> Path:
        if not (folder / name).exists():
            init_benchmark(name, folder / name, miniature=True)
        return folder / name

    return make


def test_the_table_has_a_row_for_every_folder_and_the_order_is_that_of_the_papers() -> None:
    assert {row.name for row in ROWS} == set(BENCHMARKS)
    assert [row.name for row in LEARNED] == [
        name for name, each in BENCHMARKS.items() if each.guide is not None
    ]


@each_row
def test_a_benchmark_gives_its_formats_and_metrics(row: Row) -> None:
    benchmark = BENCHMARKS[row.name]
    assert set(benchmark.formats) == row.formats
    assert set(benchmark.metrics) == row.metrics
    for name, layout in benchmark.formats.items():
        assert LAYOUTS[name] is layout
    for name in benchmark.metrics:
        if name != "ucit_caption":  # needs Java
            build_metric(name)


@each_row
def test_a_config_names_formats_that_exist_and_no_path_outside_the_data_root(row: Row) -> None:
    tasks = BENCHMARKS[row.name].tasks()
    assert len(tasks) == row.tasks
    for task in tasks:
        assert task["format"] in LAYOUTS
        assert task.get("eval_only", False) == row.added
        paths = [task.get("train", "."), task["test"], task["image_root"]]
        for path in [*paths, *task.get("side_files", {}).values()]:
            assert not Path(path.strip("{")).is_absolute()


@each_learned
def test_a_config_reads_every_file_of_its_benchmark(miniature: Make, row: Row) -> None:
    rows = (row, *ADDED)
    tasks = [Task(**task) for each in rows for task in BENCHMARKS[each.name].tasks()]
    store = SampleStore(tasks, miniature(row.name))
    store.check(decode_images=True)
    test_items = {name: count for each in rows for name, count in each.test_items.items()}
    for task in tasks:
        assert len(store.samples(task.name, "test")) == test_items.get(task.name, 4)
        if not task.eval_only:
            assert len(store.samples(task.name, "train")) == 8
    assert len(store.training_task_names) == row.tasks


def move(root: Path, old: str, new: str) -> None:
    (root / new).parent.mkdir(parents=True, exist_ok=True)
    shutil.move(root / old, root / new)


def variant(miniature: Make, name: str, tmp_path: Path) -> Path:
    return shutil.copytree(miniature(name), tmp_path / "variant")


def check(name: str, root: Path) -> None:
    SampleStore([Task(**task) for task in BENCHMARKS[name].tasks()], root).check(
        decode_images=False
    )


@pytest.mark.parametrize("folder", ["Instructions_Original", "Instruction_Original"])
def test_coin_is_found_without_its_outer_folders(
    miniature: Make, tmp_path: Path, folder: str
) -> None:
    root = variant(miniature, "coin", tmp_path)
    move(root, "playground/Instructions_Original", folder)
    for path in list((root / "cl_dataset").iterdir()):
        move(root, f"cl_dataset/{path.name}", path.name)
    (root / "cl_dataset").rmdir()
    move(root, f"{folder}/VizWiz/val.json", f"{folder}/VizWiz/test.json")
    check("coin", root)


def test_ucit_is_found_under_the_names_of_hide(miniature: Make, tmp_path: Path) -> None:
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


def test_a_missing_benchmark_is_reported_with_all_searched_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        check("coin", tmp_path)
    message = str(caught.value)
    assert f"{tmp_path}/playground/Instructions_Original/ScienceQA/train.json" in message
    assert "\n" not in message


def test_the_page_of_metrics_has_the_metric_that_a_config_gives_each_task() -> None:
    (line,) = re.findall(r"The tasks and their metrics: (.*)\.", METRICS_PAGE.read_text("utf-8"))
    listed = {
        task: metric
        for metric, tasks in (entry.split(": ") for entry in line.replace("`", "").split("; "))
        for task in tasks.split(", ")
    }
    assert listed == benchmark_tasks()


# -- dmole data init ---------------------------------------------------------------------------


@each_learned
def test_init_makes_folders_and_a_guide(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], row: Row
) -> None:
    name, data_guide = row.name, BENCHMARKS[row.name].guide
    assert data_guide is not None
    root = tmp_path / "new" / name
    assert main(["data", "init", name, str(root)]) == 0
    assert str(root / "README.md") in capsys.readouterr().out
    guide = (root / "README.md").read_text(encoding="utf-8")
    assert f"dmole fit --config {name}.yaml" in guide
    files = [path for path in root.rglob("*") if path.is_file()]
    assert files == [root / "README.md"]
    assert all((root / folder).is_dir() for folder in data_guide.folders)
    assert [path.name for path in tmp_path.joinpath("new").iterdir()] == [name]


def test_init_leaves_a_folder_alone_unless_forced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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
        (["coi", "x"], "no benchmark 'coi', there are cmit, coin, coin_asd, cvit, mllm_acl"),
        (["coin", "x", "--miniature", "--force"], "--miniature without --force"),
        (["coin", "file"], "file exists and is not an empty folder"),
        (["coin"], "output"),
    ],
)
def test_an_error_of_init_is_one_line_and_writes_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    culprit: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("x")
    assert main(["data", "init", *words]) == 1
    error = capsys.readouterr().err
    assert culprit in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_interrupted_miniature_leaves_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(miniature: Miniature) -> None:
        miniature.text("half.json", "")
        raise KeyboardInterrupt

    monkeypatch.setitem(BENCHMARKS, "coin", replace(BENCHMARKS["coin"], miniature=fail))
    with pytest.raises(KeyboardInterrupt):
        init_benchmark("coin", tmp_path / "coin", miniature=True)
    assert list(tmp_path.iterdir()) == []


# -- published sizes ---------------------------------------------------------------------------


@each_row
def test_published_sizes_are_of_tasks_that_the_config_has(row: Row) -> None:
    benchmark = BENCHMARKS[row.name]
    tasks = benchmark.tasks()
    assert set(benchmark.sizes) <= {task["name"] for task in tasks}
    if not row.added:
        assert all(task["benchmark"] == f"{row.name}/{task['name']}" for task in tasks)
    for splits in benchmark.sizes.values():
        assert set(splits) <= {"train", "test"}
        assert all(size.items > 0 and size.source for size in splits.values())


def test_a_task_without_a_published_size_has_none_and_an_unknown_one_is_refused() -> None:
    assert published_sizes("RS", "mllm_dcl/RS") == {}
    with pytest.raises(
        ValueError, match="unknown benchmark 'other/RS'; it must be one of coin/ScienceQA"
    ):
        published_sizes("RS", "other/RS")


def test_a_benchmark_without_its_config_is_named() -> None:
    benchmark = Benchmark(name="made_up", config="no.yaml", miniature=lambda miniature: None)
    with pytest.raises(FileNotFoundError, match=r"benchmark 'made_up': no config no\.yaml"):
        benchmark.tasks()


def test_the_help_of_init_names_the_benchmarks(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["data", "init", "--help"])
    assert ", ".join(guided_benchmarks()) in capsys.readouterr().out
