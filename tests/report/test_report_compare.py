from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from dmole.metrics import summarize, write_matrix
from dmole.metrics.counterparts import counterparts
from dmole.metrics.summary import RUN_FORMAT
from dmole.report import compare, load_run
from dmole.report.compare import group_runs
from dmole.report.grids import summary_grid
from dmole.report.identity import GIVEN, MARKS
from dmole.report.method_figures import method_figures
from dmole.report.notes import make_notes
from dmole.report.tables import escape_latex
from dmole.storage.digests import Digests, file_digest, write_digests

NAMES = ["color", "count"]


def test_a_run_is_read_from_its_folder(runs: list[Path]) -> None:
    run = load_run(runs[0])
    assert (run.method, run.seed, run.task_names) == ("dmole", 1, NAMES)
    assert run.figure("Last") == 79.0
    assert run.oracle("BWT") == 0.0
    assert run.oracle("Last") == 79.0
    assert run.of_task("BWT", "color") == -2.0
    assert math.isnan(run.of_task("BWT", "count"))
    assert run.active_added == 1500.0
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
    [
        ("metrics.json", b"{"),
        ("metrics.json", b"[]"),
        ("metrics.json", b"\xff"),
        ("metrics.json", b'{"Last": "high", "definitions": {"Last": "a mean"}}'),
        ("metrics.json", b'{"per_task": 5}'),
        ("metrics.json", b'{"per_task": {"color": 5}}'),
        ("metrics.json", b'{"per_task": {"color": {"Last": true}}}'),
        ("metrics.json", b'{"oracle": {"BWT": [], "definitions": {"BWT": "a mean"}}}'),
        ("timing.json", b'{"seconds": "long"}'),
        ("timing.json", b'{"parameters": {"trainable": {"color": "many"}}}'),
        ("config.yaml", b"a: ["),
        ("config.yaml", b"a: \xff"),
        ("evaluation_matrix.csv", b"stage,\xff"),
    ],
)
def test_a_broken_file_is_named(runs: list[Path], name: str, text: bytes) -> None:
    (runs[0] / name).write_bytes(text)
    with pytest.raises(ValueError, match=name):
        load_run(runs[0])


def test_two_runs_of_one_method_and_seed_are_refused(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    matrix = [[0, 0], [90, 5], [88, 70]]
    folders = [make_run(tmp_path / str(i), "a", matrix, seed) for i, seed in enumerate((0, 1, 0))]
    with pytest.raises(
        ValueError, match=r"2 and .*0 are both called 'a' and have the same seed, 0"
    ):
        compare(folders, tmp_path / "out")


def test_a_method_of_unknown_size_is_not_drawn_as_one_that_trains_nothing(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    matrix = [[0, 0], [90, 5], [88, 70]]
    folders = [make_run(tmp_path / name, name, matrix) for name in "ab"]
    (folders[1] / "timing.json").write_text("{}")
    groups = group_runs([load_run(folder) for folder in folders])
    grid = summary_grid(groups, [])
    figure = method_figures(groups, grid, make_notes(groups, [grid], {}, []))[
        "accuracy_parameters.png"
    ]
    words = [text.get_text() for text in figure.axes[0].texts]
    assert "a" in words
    assert not [word for word in words if word.startswith("b")]


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
    assert lines[0] == (
        "| method | runs | Last | AVG | BWT | MAA | Forgetting | oracle Last | oracle BWT "
        "| trainable parameters per task | active added parameters | seconds |"
    )
    # Last 79 and 82; AVG (89 + 37.5) / 2 and (92 + 38.5) / 2; BWT -2 and 0; MAA (90 + 79) / 2 and
    # (92 + 82) / 2; the sample deviation of two numbers is their distance by the root of 2
    assert lines[2] == (
        "| dmole | 2 | **80.50 ± 2.12** | **64.25 ± 1.41** | **-1.00 ± 1.41** | **85.75 ± 1.77** "
        "| **1.00 ± 1.41** | 80.50 ± 2.12 | 0.00 ± 0.00 | 2,000 | 1,500 | 102 ± 1 |"
    )
    assert lines[3] == (
        "| seq-ft | 1 | 57.50 | 52.50 | -50.00 | 73.75 | 50.00 | 57.50 | 0.00 "
        "| 2,000 | 1,500 | 101 |"
    )
    assert "- BWT: mean_i (R[S,i] - R[s_i,i]); tasks learned before the last stage; div" in text
    assert ", without the 50,000 parameters of the base model\n" in text


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
    text = compare(runs, tmp_path)
    assert "| zero-shot | 1 | 15.00 | 15.00 | n/a | n/a | n/a |" in text
    assert "- AVG (zero-shot): mean_i mean_t R[t,i]; no stage was trained: row 0" in text


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


def test_a_run_whose_name_is_markup_stays_in_its_row(runs: list[Path], tmp_path: Path) -> None:
    for run in runs[:2]:
        config = yaml.safe_load((run / "config.yaml").read_text())
        config["trainer"] = {"name": "<img src=x onerror=y>|\n# head"}
        (run / "config.yaml").write_text(yaml.safe_dump(config))
    lines = compare(runs, tmp_path / "out").splitlines()
    assert lines[2].startswith("| \\<img src=x onerror=y>\\| # head | 2 |")


def test_tasks_have_tables_and_exact_data_of_their_own(runs: list[Path], tmp_path: Path) -> None:
    text = compare(runs, tmp_path)
    _, _, last = text.partition("### Last of each task\n\n")
    assert last.splitlines()[:4] == [
        "| method | runs | color | count |",
        "| --- | ---: | ---: | ---: |",
        "| dmole | 2 | **90.00 ± 2.83** | 71.00 ± 1.41 |",
        "| seq-ft | 1 | 40.00 | **75.00** |",
    ]
    _, _, forgetting = text.partition("### Forgetting of each task\n\n")
    assert "| dmole | 2 | **1.00 ± 1.41** | n/a |" in forgetting  # the lowest is the best
    with (tmp_path / "per_task.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["task"]) for row in rows] == [
        (method, task) for method in ("dmole", "seq-ft") for task in NAMES
    ]
    assert {k: rows[0][k] for k in ("runs", "Last", "Last sd", "AVG", "BWT", "Forgetting")} == {
        "runs": "2",
        "Last": "90.0",
        "Last sd": repr(math.sqrt(8)),
        "AVG": "90.5",
        "BWT": "-1.0",
        "Forgetting": "1.0",
    }
    assert [rows[1]["BWT"], rows[1]["BWT sd"], rows[2]["Last sd"]] == ["", "", ""]


def test_a_method_that_is_given_the_task_is_marked_and_never_best(
    make_run: Callable[..., Path], runs: list[Path], tmp_path: Path
) -> None:
    routed = {"router": {"class_path": "dmole.routing.OracleRouter"}}
    stream = {"name": "joint", "stream": {"class_path": "dmole.streams.JointStream"}}
    known = make_run(tmp_path / "k", "known", [[0, 0], [99, 0], [99, 98]], config={"model": routed})
    joint = make_run(tmp_path / "j", "joint", [[0, 0], [97, 96]], config={"trainer": stream})
    write_matrix(joint / "oracle_matrix.csv", [[math.nan] * 2, [97, 96]], NAMES)
    text = compare([*runs, known, joint], tmp_path / "out")
    assert "| known‡ | 1 | 98.50 |" in text
    assert "| joint† | 1 | 96.50 |" in text
    assert "| dmole | 2 | **80.50 ± 2.12** |" in text
    assert "ties included, methods marked † ‡ excluded." in text
    assert "† trained on all tasks at once.  \n‡ task identity given at test." in text
    with (tmp_path / "out" / "comparison.csv").open() as file:
        notes = [row["note"] for row in csv.DictReader(file)]
    assert notes == ["", "", "task identity given at test", "trained on all tasks at once"]


@pytest.mark.slow
def test_a_mark_means_the_same_in_every_table(
    make_run: Callable[..., Path], runs: list[Path], tmp_path: Path
) -> None:
    routed = {"router": {"class_path": "dmole.routing.OracleRouter"}}
    stream = {"name": "joint", "stream": {"class_path": "dmole.streams.JointStream"}}
    known = make_run(tmp_path / "k", "known", [[0, 0], [99, 0], [99, 98]], config={"model": routed})
    joint = make_run(tmp_path / "j", "joint", [[0, 0], [97, 96]], config={"trainer": stream})
    write_matrix(joint / "oracle_matrix.csv", [[math.nan] * 2, [97, 96]], NAMES)
    marks = {known: ("known", "‡", "task identity given at test")}
    marks[joint] = ("joint", "†", "trained on all tasks at once")
    for number, chosen in enumerate(([known], [joint], [known, joint], [joint, known])):
        folder = tmp_path / str(number)
        text = compare([*runs, *chosen], folder)
        latex = (folder / "comparison.tex").read_text()
        for run, (method, mark, meaning) in marks.items():
            assert (f"| {method}{mark} |" in text) == (run in chosen)
            assert (f"{mark} {meaning}." in text) == (run in chosen)
            assert (f"{escape_latex(mark)} {escape_latex(meaning)}." in latex) == (run in chosen)


def test_every_advantage_has_a_mark_of_its_own() -> None:
    assert list(MARKS) == list(GIVEN.values())
    assert len(set(MARKS.values())) == len(GIVEN)


def test_a_single_method_has_no_best(runs: list[Path], tmp_path: Path) -> None:
    text = compare(runs[:2], tmp_path)
    assert "**" not in text
    assert "Bold" not in text


def test_retention_is_a_column_where_it_was_scored(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    kept = {"retention": {"change": -3.25, "per_task": {}, "definition": "mean_i of x"}}
    runs = [
        make_run(tmp_path / name, name, [[0, 0], [90, 5], [88, 70]], metrics=extra)
        for name, extra in (("a", kept), ("b", {}))
    ]
    text = compare(runs, tmp_path / "out")
    assert "| retention change |" in text
    assert "| -3.25 |" in text
    assert "- retention change: mean_i of x\n" in text


def test_without_trained_parameters_an_older_picture_goes(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "accuracy_parameters.png").write_text("of an earlier comparison")
    text = compare([make_run(tmp_path / "z", "zero-shot", [[10, 20]])], out)
    assert "| zero-shot | 1 | 15.00 | 15.00 | n/a | n/a | n/a | n/a | n/a | 0 | 1,500 |" in text
    assert not (out / "accuracy_parameters.png").exists()
    assert (out / "forgetting.png").is_file()


def test_a_run_of_the_first_format_is_compared_and_one_of_a_later_format_refused(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    matrix = [[0.0, 0.0], [90.0, 5.0], [88.0, 70.0]]
    first = make_run(tmp_path / "first", "dmole", matrix)
    now = make_run(tmp_path / "now", "dmole", matrix, 1, metrics={"format": RUN_FORMAT})
    later = make_run(tmp_path / "later", "dmole", matrix, 2, metrics={"format": RUN_FORMAT + 1})
    compare([first, now], tmp_path / "both", [])
    assert (tmp_path / "both" / "comparison.csv").is_file()
    with pytest.raises(ValueError, match=r"later/metrics.json: unknown format 3, the newest is 2"):
        compare([first, later], tmp_path / "none", [])


def test_a_constant_answer_has_a_row_in_every_table_but_is_never_best(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    stated = {"color": {"answer": "re|d", "score": 95.0}, "count": {"answer": "two", "score": 51.0}}
    matrix = [[0, 0], [90, 5], [88, 70]]
    folders = [
        make_run(tmp_path / name, name, matrix, metrics={"constant_answer": stated})
        for name in "ab"
    ]
    text = compare(folders, tmp_path / "out")
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| constant")]
    by_task = ["", "95.00", "51.00 |"]
    assert [row[1:4] for row in rows] == [["", "73.00", "73.00"], by_task, by_task]
    assert "(color: re\\|d, count: two)" in text
    latex = (tmp_path / "out" / "comparison.tex").read_text()
    assert "constant answer &  & 73.00" in latex
    with (tmp_path / "out" / "per_task.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [
        (r["task"], r["Last"], r["BWT"]) for r in lines if r["method"] == "constant answer"
    ] == [
        ("color", "95.0", ""),
        ("count", "51.0", ""),
    ]


@pytest.mark.parametrize("stated", [3, {"color": 3}, {"color": {"score": "x"}}])
def test_a_broken_constant_answer_is_named(
    make_run: Callable[..., Path], tmp_path: Path, stated: object
) -> None:
    run = make_run(
        tmp_path / "a", "a", [[0, 0], [9, 0], [9, 9]], metrics={"constant_answer": stated}
    )
    with pytest.raises(ValueError, match=r"metrics\.json: .*(constant_answer|score)"):
        load_run(run)


def test_the_spread_of_a_task_does_not_cancel_in_the_mean(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    folders = [
        make_run(tmp_path / str(seed), "a", [[0, 0], [90, 5], last], seed)
        for seed, last in enumerate([[80, 60], [60, 80]])
    ]
    text = compare(folders, tmp_path / "out")
    assert "| a | 2 | 70.00 ± 0.00 |" in text
    assert "root mean square over the tasks: a 14.14." in text


def test_replayed_samples_are_counted_among_those_trained_on(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    run = make_run(tmp_path / "a", "a", [[0, 0], [9, 0], [9, 9]])
    timing = json.loads((run / "timing.json").read_text())
    timing["phases"] = [
        {"stage": 1, "phase": "train", "samples": 100},
        {"stage": 1, "phase": "evaluate", "samples": None},
        {"stage": 2, "phase": "train", "samples": 160},
    ]
    (run / "timing.json").write_text(json.dumps(timing))
    assert load_run(run).samples_trained == 260


@pytest.mark.parametrize("name", ["evaluation_matrix.csv", "oracle_matrix.csv", "metrics.json"])
def test_results_that_were_edited_are_refused(runs: list[Path], name: str) -> None:
    names = ["evaluation_matrix.csv", "oracle_matrix.csv", "metrics.json"]
    run = next(run for run in runs if (run / "oracle_matrix.csv").is_file())
    write_digests(run, Digests({name: file_digest(run / name) for name in names}))
    assert load_run(run).folder == run
    text = (run / name).read_text(encoding="utf-8").rstrip("\n")
    edited = text.replace("\n", "\n ", 1) if name.endswith(".json") else text[:-1] + "5"
    (run / name).write_text(edited + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=rf"{name} is not the file that this run has written"):
        load_run(run)


@pytest.mark.parametrize(
    ("later", "agree"),
    [
        ({"images": {"background": None, "apply_exif": False}}, True),
        ({"images": {"background": "white", "apply_exif": False}}, False),
        ({"rank_factor": 1.0, "columns": {}, "limit": None}, True),
        ({"rank_factor": 0.5}, False),
        ({"std_floor": 0.001}, True),
        ({"std_floor": 1.0}, False),
        ({"cache_images": "off", "cache_bytes": 2**32, "cache_folder": None}, True),
        ({"cache_vision": "ram", "cache_vision_bytes": 2**32, "cache_vision_folder": None}, True),
        ({"keep_embeddings": True, "case_images": 24, "report": True}, True),
    ],
    ids=str,
)
def test_seeds_of_two_versions_agree_unless_a_new_setting_changes_the_run(
    later: dict[str, object], agree: bool, make_run: Callable[..., Path], tmp_path: Path
) -> None:
    matrix = [[0, 0], [90, 5], [88, 70]]
    before = make_run(tmp_path / "0", "a", matrix, 0, config={"data": {"seed": 0}})
    after = make_run(tmp_path / "1", "a", matrix, 1, config={"data": {"seed": 1, **later}})
    if agree:
        compare([before, after], tmp_path / "out")
    else:
        with pytest.raises(ValueError, match=rf"differ in data\.{next(iter(later))}"):
            compare([before, after], tmp_path / "out")


def test_figures_of_other_libraries_have_a_table_where_it_is_wanted(
    runs: list[Path],
    make_run: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.modules[compare.__module__], "method_figures", lambda *given: {})
    stated = counterparts([[0, 0], [90, 5], [50, 60]], sizes=[300, 100], obedience=[80.0])
    matrix = [[0.0, 0.0], [90.0, 5.0], [50.0, 60.0]]
    newer = make_run(tmp_path / "n", "newer", matrix, metrics={"counterparts": stated})
    output = tmp_path / "out"
    text = compare([*runs, newer], output, counterparts=True)
    assert "### Figures of other libraries" in text
    assert "| newer | 1 | 55.00 | 52.50 | -20.00 | 72.50 | 80.00 |" in text
    assert "last stage; n/a: the numbers of test samples are unknown" in text
    with (output / "counterparts.csv").open(newline="", encoding="utf-8") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert float(rows["dmole"]["MFN"]) == pytest.approx((79 + 82) / 2)
    assert rows["dmole"]["FAA"] == rows["dmole"]["MIF"] == ""
    assert float(rows["newer"]["BWT/T"]) == -20.0
    plain = compare([*runs, newer], output)
    assert "MIF" not in plain
    assert not (output / "counterparts.csv").exists()


def test_a_broken_figure_of_other_libraries_is_named(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    broken = {"counterparts": {"MFN": "many"}}
    run = make_run(tmp_path / "b", "b", [[0.0, 0.0], [90.0, 5.0], [50.0, 60.0]], metrics=broken)
    with pytest.raises(ValueError, match=r"metrics\.json: counterparts\.MFN must be null"):
        load_run(run)
