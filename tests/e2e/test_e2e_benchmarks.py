"""The benchmarks' configs are run from the command line, in miniature, on the embedded model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from benchmark_table import LEARNED, Row

from dmole.benchmarks.init import init_benchmark
from dmole.benchmarks.registry import BENCHMARKS
from dmole.cli.main import main
from dmole.storage.predictions import read_stage

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
Fit = Callable[..., Path]
Rows = Callable[[Path], list[dict[str, str]]]
TINY = {"name_or_path": "tiny"}  # with the dtype and precision of the config


def tasks_of(name: str, count: int | None = None) -> list[dict[str, Any]]:
    tasks = BENCHMARKS[name].tasks()[:count]
    return [task | {"max_new_tokens": 2, "epochs": 1} for task in tasks]


@pytest.fixture
def fit(tmp_path: Path) -> Fit:
    """Run a benchmark's config on its miniature, with as many of its tasks, and return the run."""

    def run(name: str, count: int | None = None, *, retention: int = 0) -> Path:
        init_benchmark(name, tmp_path / "data", miniature=True)
        tasks = tasks_of(name, count)
        more = tasks_of("retention", retention)
        small = {
            "trainer": {
                "default_root_dir": str(tmp_path / "runs"),
                "accelerator": "cpu",
                "devices": 1,
                "accumulate_grad_batches": 1,
                "enable_progress_bar": False,
                "callbacks": [{"class_path": "no_figures.NoFigures"}],
            },
            "model": {
                "backbone": {"init_args": TINY},
                "allocator": {
                    "class_path": "dmole.allocation.SensitivityAllocator",
                    "init_args": {"rank": 2},
                },
            },
            "data": {"num_workers": 0, "max_length": None, "batch_size": 4, "tasks": tasks + more},
        }
        path = tmp_path / "small.yaml"
        path.write_text(yaml.safe_dump(small), encoding="utf-8")
        words = ["--config", str(CONFIGS / f"{name}.yaml"), "--config", str(path)]
        words += ["--trust_classes", "no_figures"]
        assert main(["fit", *words, "--data.data_root", str(tmp_path / "data")]) == 0
        return next((tmp_path / "runs").glob("*/version_0"))

    return run


@pytest.mark.slow
def test_coin_is_learned_in_its_order_and_keeps_retention_out_of_its_figures(
    fit: Fit, rows: Rows
) -> None:
    run = fit("coin", 2, retention=1)
    matrix = rows(run / "evaluation_matrix.csv")
    assert list(matrix[0]) == ["stage", "ScienceQA", "TextVQA", "MME"]
    assert len(matrix) == 3
    assert all(row["TextVQA"] and row["MME"] for row in matrix)
    metrics = json.loads((run / "metrics.json").read_text())
    assert list(metrics["per_task"]) == ["ScienceQA", "TextVQA"]
    assert list(metrics["retention"]["per_task"]) == ["MME"]
    assert len(read_stage(run, 2)["TextVQA"][0]["references"]) == 10
    config = yaml.safe_load((run / "config.yaml").read_text())  # what is small is not the types
    assert config["trainer"]["precision"] == "bf16-mixed"
    assert config["model"]["backbone"]["init_args"]["dtype"] == "bfloat16"


@pytest.mark.slow
def test_cmit_keeps_retention_out_of_its_figures(fit: Fit, rows: Rows) -> None:
    run = fit("cmit", 2, retention=2)
    matrix = rows(run / "evaluation_matrix.csv")
    assert list(matrix[0]) == ["stage", "VizWiz-Cap", "SK-VG", "MME", "POPE-random"]
    assert all(row["MME"] and row["POPE-random"] for row in matrix)
    metrics = json.loads((run / "metrics.json").read_text())
    assert list(metrics["per_task"]) == ["VizWiz-Cap", "SK-VG"]
    assert list(metrics["retention"]["per_task"]) == ["MME", "POPE-random"]
    last = (float(matrix[-1]["VizWiz-Cap"]) + float(matrix[-1]["SK-VG"])) / 2
    assert metrics["Last"] == pytest.approx(last)
    assert {row["expert"] for row in rows(run / "allocation.csv")} == {"VizWiz-Cap", "SK-VG"}
    assert main(["compare", str(run), "--output", str(run / "compared")]) == 0
    out = run / "again"
    assert main(["evaluate", str(run), "--split", "train", "--output", str(out)]) == 0
    assert list(rows(out / "evaluation_matrix.csv")[0]) == ["stage", "VizWiz-Cap", "SK-VG"]


needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="METEOR needs Java")


@pytest.mark.slow
@pytest.mark.parametrize(
    "row",
    [pytest.param(row, marks=needs_java if row.needs_java else ()) for row in LEARNED],
    ids=lambda row: row.name,
)
def test_a_whole_benchmark_is_learned_with_retention(fit: Fit, rows: Rows, row: Row) -> None:
    run = fit(row.name, retention=5)
    expected = BENCHMARKS[row.name].tasks() + BENCHMARKS["retention"].tasks()
    matrix = rows(run / "evaluation_matrix.csv")
    assert list(matrix[0])[1:] == [task["name"] for task in expected]
    assert all(value for row in matrix for value in row.values())
    others = json.loads((run / "metrics.json").read_text())["counterparts"]
    assert set(others["missing"]) == (set() if row.name == "cvit" else {"MIF"})
