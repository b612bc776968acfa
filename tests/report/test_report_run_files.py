"""No alteration of a run's files gives more than one line that names the file."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dmole.metrics import write_matrix
from dmole.report.compare import compare
from dmole.report.grids import learning_grid, summary_grid, task_grids
from dmole.report.identity import advantages, check_comparable
from dmole.report.notes import make_notes
from dmole.report.runs import load_run
from dmole.report.tables import figures_latex, to_markdown
from experiments.mutations import mutate
from experiments.odd_values import VALUES, paths_in, replaced
from tests.report.conftest import MakeRun

EVIL = "\x1b]0;t\x07\x1b[31mx\u202e\u200b"


@pytest.fixture
def run(make_run: MakeRun, tmp_path: Path) -> Path:
    config: dict[str, Any] = {
        "trainer": {"name": "x", "stream": {"class_path": "dmole.streams.SequentialStream"}},
        "model": {"backbone": {"class_path": "dmole.models.PretrainedBackbone"}},
        "data": {"tasks": [{"name": "color", "metric": "iou"}, {"name": "count", "train": "a"}]},
    }
    metrics: dict[str, Any] = {
        "scoring": {"color": {"tokenizer": "a"}},
        "routing": {"own_first": 60.0, "second_expert": None},
        "retention": {"change": -1.0, "definition": "text"},
        "fingerprints": {"base": "0a", "data": {"color": {"train": "1b", "test": "2c"}}},
    }
    scores = [[0, 0], [90, 5], [88, 70]]
    return make_run(tmp_path / "v", "x", scores, config=config, metrics=metrics)


def tabulate(folder: Path, other: Path) -> str:
    """Do all that ``compare`` does, except the figures."""
    runs = [load_run(folder), load_run(other)]
    groups = {"a": [runs[0]], "b": [runs[1]]}
    mixed = check_comparable(runs, ["data", "base", "profile", "epochs", "definitions"])
    given = {name: advantages(group[0]) for name, group in groups.items()}
    grid, learning, by_task = summary_grid(groups), learning_grid(groups), task_grids(groups)
    notes = make_notes(groups, [grid, learning], given, mixed)
    text = to_markdown(grid, [learning], by_task.values(), notes)
    return text + "".join(figures_latex(each, "tab", notes) for each in (grid, learning))


def refusal(folder: Path, other: Path) -> str | None:
    """Return the message with which a run is refused; None if it is read."""
    try:
        tabulate(folder, other)
    except (ValueError, FileNotFoundError) as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("name", "parse", "dump"),
    [
        ("metrics.json", json.loads, json.dumps),
        ("timing.json", json.loads, json.dumps),
        ("config.yaml", yaml.safe_load, json.dumps),
    ],
)
def test_any_value_in_place_of_any_other_is_used_or_refused_by_name(
    name: str,
    parse: Callable[[str], Any],
    dump: Callable[[Any], str],
    run: Path,
    make_run: MakeRun,
    tmp_path: Path,
) -> None:
    other = make_run(tmp_path / "o", "y", [[0, 0], [90, 5], [88, 70]])
    content = parse((run / name).read_text())
    refused = 0
    for path in paths_in(content):
        for value in VALUES[len(path) % 4 :: 4]:
            (run / name).write_text(dump(replaced(content, path, value)))
            message = refusal(run, other)
            assert message is None or (str(run) in message and len(message) < 1000), (path, value)
            refused += message is not None
    assert refused > 20


def test_damaged_files_are_refused_or_read(run: Path, tmp_path: Path, make_run: MakeRun) -> None:
    other = make_run(tmp_path / "o", "y", [[0, 0], [90, 5], [88, 70]])
    files = {path: path.read_bytes() for path in sorted(run.iterdir())}
    outcomes = set()
    for seed in range(150):
        rng = random.Random(seed)
        path = rng.choice(list(files))
        done = mutate(rng, path)
        message = refusal(run, other)
        assert message is None or str(run) in message, done
        outcomes.add(done if message else "read")
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        path.unlink(missing_ok=True)
        path.write_bytes(files[path])
    assert outcomes > {"read", "bomb", "other_kind", "resize"}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "metrics.json",
            {"Last": [1]},
            r"json: Last must be null or a number .* got \[1\]",
        ),
        ("metrics.json", {"Last": 1e300}, "Last must be null or a number up to 1e.15, got 1e.300"),
        ("metrics.json", {"format": [2]}, r"unknown format \[2\], the newest is"),
        ("metrics.json", {"definitions": {"Last": 1}}, "definitions.Last must be null or text"),
        ("metrics.json", {"per_task": {"color": 1}}, "per_task.color: expected keys and values"),
        ("metrics.json", {"routing": {"own_first": "x"}}, "routing.own_first must be null or a"),
        ("metrics.json", {"retention": {"change": "x"}}, "retention.change must be null or a"),
        ("metrics.json", {"oracle": {"per_task": {"a": {"BWT": "x"}}}}, "oracle.per_task.a.BWT"),
        ("timing.json", {"parameters": {"trainable": {"a": "x"}}}, "parameters.trainable.a must"),
        ("config.yaml", {"trainer": {"name": "x" * 201}}, "trainer.name must be a text of at most"),
        ("config.yaml", {"trainer": {"stream": "x"}}, "trainer.stream: expected keys and values"),
        ("config.yaml", {"data": {"tasks": [1]}}, "data.tasks must be a list of mappings"),
        (
            "config.yaml",
            {"data": {"tasks": [{"name": []}]}},
            r"tasks\[0\].name must be a text",
        ),
    ],
)
def test_a_value_of_another_type_names_file_and_key(
    name: str, change: dict[str, Any], message: str, run: Path
) -> None:
    content = yaml.safe_load((run / name).read_text())
    (run / name).write_text(json.dumps(content | change))
    with pytest.raises(ValueError, match=message):
        load_run(run)


def test_no_name_acts_on_a_terminal_or_a_spreadsheet(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = [[0, 0], [90, 5], [88, 70]]
    folders = [make_run(tmp_path / "a", EVIL, scores)]
    folders.append(make_run(tmp_path / "b", "=cmd|' /C calc'!A0", scores))
    tasks = [f"{EVIL}a", "@SUM(1)"]
    for folder in folders:
        for name in ("evaluation_matrix.csv", "oracle_matrix.csv"):
            text = (folder / name).read_text(encoding="utf-8")
            rows = list(csv.reader(text.splitlines()))
            (folder / name).write_text("\n".join(map(",".join, [["stage", *tasks], *rows[1:]])))
    compare(folders, tmp_path / "out")
    printed = capsys.readouterr().out
    assert "\\x1b" in printed
    assert printed.replace("\n", "").isprintable()
    for path in sorted((tmp_path / "out").glob("*.[cmt]*")):
        assert path.read_text(encoding="utf-8").replace("\n", "").isprintable(), path
    with (tmp_path / "out" / "comparison.csv").open(newline="", encoding="utf-8") as file:
        assert [row[0] for row in csv.reader(file)][2] == "'=cmd|' /C calc'!A0"
    with (tmp_path / "out" / "per_task.csv").open(newline="", encoding="utf-8") as file:
        assert {row[2] for row in csv.reader(file)} > {"'@SUM(1)"}


def test_a_matrix_that_no_figure_can_show_is_refused(run: Path) -> None:
    file = run / "evaluation_matrix.csv"
    file.write_text("stage,a\n0,1e300\n")
    with pytest.raises(ValueError, match=r"matrix.csv, line 2: a score must be finite and at most"):
        load_run(run)
    file.write_text("stage,a,a\n0,1,2\n")
    with pytest.raises(ValueError, match=r"line 1: two columns have the same name"):
        load_run(run)
    write_matrix(file, [[1.0]], ["n" * 300])
    with pytest.raises(ValueError, match=r"matrix.csv: the name of a task must be a text"):
        load_run(run)
