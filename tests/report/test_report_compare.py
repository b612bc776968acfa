from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from dmole.metrics import summarize, write_matrix
from dmole.report import compare, load_run
from dmole.report.compare import escape_markdown

NAMES = ["color", "count"]


def make_run(folder: Path, name: str, matrix: list[list[float]], seed: int = 0) -> Path:
    """Write a run folder as a finished run leaves it."""
    oracle = [[math.nan, math.nan], [matrix[-1][0], math.nan], [matrix[-1][0], matrix[-1][1]]]
    write_matrix(folder / "evaluation_matrix.csv", matrix, NAMES)
    write_matrix(folder / "oracle_matrix.csv", oracle, NAMES)
    metrics = summarize(matrix, NAMES) | {"oracle": summarize(oracle, NAMES)}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    timing: dict[str, Any] = {
        "seconds": 100.0 + seed,
        "parameters": {"trainable": {"color": 1000, "count": 3000}},
    }
    (folder / "timing.json").write_text(json.dumps(timing))
    config = f"seed_everything: {seed}\ntrainer:\n  name: {name}\n"
    (folder / "config.yaml").write_text(config)
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [
        make_run(tmp_path / "d" / "version_0", "dmole", [[0, 0], [90, 5], [88, 70]], 1),
        make_run(tmp_path / "d" / "version_1", "dmole", [[0, 0], [92, 5], [92, 72]], 2),
        make_run(tmp_path / "s" / "version_0", "seq-ft", [[0, 0], [90, 5], [40, 75]], 1),
    ]


def test_a_run_is_read_from_its_folder(runs: list[Path]) -> None:
    run = load_run(runs[0])
    assert (run.method, run.seed, run.task_names) == ("dmole", 1, NAMES)
    assert run.figure("Last") == 79.0
    assert run.oracle_bwt == 0.0
    assert run.trainable_per_task == 2000.0
    assert run.seconds == 101.0
    assert run.task_of_stage == [[0], [1]]


@pytest.mark.parametrize(
    "name", ["evaluation_matrix.csv", "metrics.json", "timing.json", "config.yaml"]
)
def test_a_missing_file_is_named(runs: list[Path], name: str) -> None:
    (runs[0] / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"version_0 has no {name}"):
        load_run(runs[0])


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no run folder .*nowhere"):
        load_run(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "text"),
    [("metrics.json", "{"), ("metrics.json", "[]"), ("config.yaml", "a: [")],
)
def test_a_broken_file_is_named(runs: list[Path], name: str, text: str) -> None:
    (runs[0] / name).write_text(text)
    with pytest.raises(ValueError, match=name):
        load_run(runs[0])


def test_an_oracle_matrix_of_another_shape_is_refused(runs: list[Path]) -> None:
    write_matrix(runs[0] / "oracle_matrix.csv", [[1.0, 2.0]], NAMES)
    with pytest.raises(ValueError, match=r"oracle_matrix.csv: shape \(1, 2\)"):
        load_run(runs[0])


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("trainer: {class_path: x, init_args: {name: lora}}", "lora"),
        ("model: {}", "d"),
        ("trainer: {name: null}", "d"),
    ],
)
def test_the_method_is_the_trainers_name_or_the_folders(
    runs: list[Path], config: str, expected: str
) -> None:
    (runs[0] / "config.yaml").write_text(config)
    run = load_run(runs[0])
    assert run.method == expected
    assert run.seed is None


def test_comparing_writes_a_table_data_and_a_figure(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = compare(runs, tmp_path / "out")
    assert capsys.readouterr().out == text + "\n"
    assert (tmp_path / "out" / "comparison.md").read_text() == text
    assert (tmp_path / "out" / "comparison.png").stat().st_size > 10_000
    lines = text.splitlines()
    assert lines[0].startswith("| method | runs | Last | AVG | BWT | oracle BWT | MAA |")
    assert lines[2].startswith("| dmole | 2 | 80.50 ± 2.12 |")
    assert "| -1.00 ± 1.41 | 0.00 ± 0.00 |" in lines[2]
    assert lines[3].startswith("| seq-ft | 1 | 57.50 |")
    assert lines[3].endswith("| 2,000 | 101 |")
    assert "- BWT: mean_i (R[S,i] - R[s_i,i])" in text


def test_the_data_keeps_exact_numbers_and_leaves_missing_ones_empty(
    runs: list[Path], tmp_path: Path
) -> None:
    compare(runs, tmp_path)
    with (tmp_path / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == ["dmole", "seq-ft"]
    assert float(rows[0]["Last"]) == 80.5
    assert rows[1]["Last sd"] == ""


def test_a_figure_one_run_lacks_is_not_averaged_over_the_others(
    runs: list[Path], tmp_path: Path
) -> None:
    write_matrix(runs[0] / "evaluation_matrix.csv", [[0, 0], [90, 5], [88, math.nan]], NAMES)
    metrics = json.loads((runs[0] / "metrics.json").read_text()) | {"Last": None}
    (runs[0] / "metrics.json").write_text(json.dumps(metrics))
    assert "| dmole | 2 | n/a |" in compare(runs, tmp_path)


def test_zero_shot_and_joint_runs_can_be_compared(runs: list[Path], tmp_path: Path) -> None:
    for folder, rows in ((runs[1], 1), (runs[2], 2)):
        matrix = [[10.0, 20.0], [90.0, 80.0]][:rows]
        oracle = [[math.nan] * 2, [90.0, 80.0]][:rows]
        write_matrix(folder / "evaluation_matrix.csv", matrix, NAMES)
        write_matrix(folder / "oracle_matrix.csv", oracle, NAMES)
        (folder / "metrics.json").write_text(json.dumps(summarize(matrix, NAMES)))
    (runs[1] / "config.yaml").write_text("trainer: {name: zero-shot}")
    assert load_run(runs[2]).task_of_stage == [[0, 1]]
    assert "| zero-shot | 1 | 15.00 | 15.00 | n/a |" in compare(runs, tmp_path)


def test_runs_that_cannot_be_compared_are_refused(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no run to compare"):
        compare([], tmp_path)
    with pytest.raises(ValueError, match="given twice"):
        compare([runs[0], runs[0]], tmp_path)
    write_matrix(runs[0] / "evaluation_matrix.csv", [[0.0, 0.0]] * 3, ["x", "y"])
    with pytest.raises(ValueError, match=r"tasks differ: .* has color, count; .* x, y"):
        compare(runs, tmp_path)


def test_runs_of_one_name_and_other_settings_are_not_averaged(
    runs: list[Path], tmp_path: Path
) -> None:
    for folder, alpha in ((runs[0], 8), (runs[1], 16)):
        config = f"seed_everything: 0\ntrainer: {{name: same}}\nmodel: {{alpha: {alpha}}}\n"
        (folder / "config.yaml").write_text(config)
    with pytest.raises(ValueError, match=r"both called 'same' but differ in model\.alpha"):
        compare(runs[:2], tmp_path)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("D-MoLE, rank 8 (ours)", "D-MoLE, rank 8 (ours)"),
        ("R[S,i] - R[s_i,i], s_i < S", "R[S,i] - R[s_i,i], s_i < S"),
        ("a|b", "a\\|b"),
        ("a\n| x | y |", "a \\| x \\| y \\|"),
        ("<script>alert(1)</script>", "\\<script>alert(1)\\</script>"),
        ("<!-- x", "\\<!-- x"),
        ("[x](javascript:alert(1))", "[x\\](javascript:alert(1))"),
        ("&lt;script&gt;", "\\&lt;script\\&gt;"),
        ("`x`", "\\`x\\`"),
        ("\\|", "\\\\\\|"),
    ],
)
def test_a_name_is_shown_as_it_is_and_cannot_leave_its_cell(text: str, shown: str) -> None:
    assert escape_markdown(text) == shown


def test_a_run_whose_name_is_markup_stays_in_its_row(runs: list[Path], tmp_path: Path) -> None:
    for run in runs[:2]:
        config = yaml.safe_load((run / "config.yaml").read_text())
        config["trainer"] = {"name": "<img src=x onerror=y>|\n# head"}
        (run / "config.yaml").write_text(yaml.safe_dump(config))
    lines = compare(runs, tmp_path / "out").splitlines()
    assert lines[2].startswith("| \\<img src=x onerror=y>\\| # head | 2 |")
