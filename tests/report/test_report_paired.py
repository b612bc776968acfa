"""Paired differences in a comparison: which runs are paired, what is refused, what is printed."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from dmole.cli.main import main
from dmole.metrics.paired import PairedDifference
from dmole.report import compare, load_run
from dmole.report.compare import group_runs
from dmole.report.paired import PairedTable, paired_table
from dmole.report.paired_tables import paired_statements

MakeRun = Callable[..., Path]
Lines = Sequence[Mapping[str, Any]]
MakeScored = Callable[..., Path]


def lines_of(scores: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """Return the lines of a file of predictions, as kept results have them."""
    return [
        {"task": task, "id": str(index), "score": score}
        for task, values in scores.items()
        for index, score in enumerate(values)
    ]


def write_lines(run: Path, lines: Lines) -> None:
    (run / "predictions").mkdir(exist_ok=True)
    file = run / "predictions" / "stage_2.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


@pytest.fixture
def scored(make_run: MakeRun, tmp_path: Path) -> MakeScored:
    """Return a function that writes a run with the scores of its samples in both tasks."""

    def make(
        name: str, color: Sequence[float], count: Sequence[float], seed: int = 0, **more: Any
    ) -> Path:
        last = [sum(scores) / len(scores) for scores in (color, count)]
        run = make_run(
            tmp_path / name / f"version_{seed}", name, [[0, 0], [90, 5], last], seed, **more
        )
        write_lines(run, lines_of({"color": color, "count": count}))
        return run

    return make


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[compare.__module__], "method_figures", lambda *given: {})


def table_of(folders: Sequence[Path], reference: str = "base") -> PairedTable:
    return paired_table(group_runs([load_run(folder) for folder in folders]), reference)


def notes_of(table: PairedTable) -> str:
    return "\n".join(paired_statements(table))


@pytest.fixture
def folders(scored: MakeScored) -> list[Path]:
    """Two seeds of a reference, of a method that is higher by 10 and 20, and of a copy."""
    return [
        scored(name, [50 + up, 30 + up], [70 + up, 40 + up, 10 + up], seed)
        for seed in (0, 1)
        for name, up in (("base", 0), ("higher", 10 * (1 + seed)), ("copy", 0))
    ]


@pytest.mark.usefixtures("without_pictures")
def test_the_tables_are_printed_and_written(folders: list[Path], tmp_path: Path) -> None:
    text = compare(folders, tmp_path / "out", reference="base")
    _, _, section = text.partition("\n### Paired differences to base\n\n")
    assert section.splitlines()[:5] == [
        "| method | seeds | ahead | difference in Last | 95 % interval | verdict |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| higher | 2 | 2 of 2 | +15.00 | [+10.00, +20.00] | better |",
        "| copy | 2 | 0 of 2 | 0.00 | [0.00, 0.00] | level |",
        "",
    ]
    assert "- 95 % interval: percentiles of 10,000 bootstrap samples." in section
    assert "75 % with 3" in section
    assert "not adjusted for the 2 methods" in section
    assert "n/a" not in section
    _, _, by_task = section.partition("\n### Paired differences to base in each task\n\n")
    assert by_task.splitlines()[2:] == [
        "| higher | +15.00 [+10.00, +20.00] better | +15.00 [+10.00, +20.00] better |",
        "| copy | 0.00 [0.00, 0.00] level | 0.00 [0.00, 0.00] level |",
    ]
    assert (tmp_path / "out" / "comparison.md").read_text(encoding="utf-8") == text
    latex = (tmp_path / "out" / "comparison.tex").read_text(encoding="utf-8")
    assert r"higher & 2 & 2 of 2 & +15.00 & {[}+10.00, +20.00{]} & better \\" in latex
    assert r"\label{tab:paired_by_task}" in (tmp_path / "out" / "per_task.tex").read_text()


@pytest.mark.usefixtures("without_pictures")
def test_the_data_has_a_row_for_each_task_and_goes_with_the_reference(
    folders: list[Path], tmp_path: Path
) -> None:
    compare(folders, tmp_path, reference="higher")
    with (tmp_path / "paired.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["task"]) for row in rows] == [
        (method, task)
        for method in ("base", "copy")
        for task in ("mean over tasks", "color", "count")
    ]
    assert rows[0] == {
        "method": "base",
        "reference": "higher",
        "seeds": "0 1",
        "ahead": "0",
        "task": "mean over tasks",
        "difference": "-15.0",
        "low": "-20.0",
        "high": "-10.0",
        "verdict": "worse",
        "note": "",
    }
    assert "Paired" not in compare(folders, tmp_path)
    assert not (tmp_path / "paired.csv").exists()
    assert "paired" not in (tmp_path / "comparison.tex").read_text(encoding="utf-8")


def test_a_reference_that_is_no_method_is_refused_before_anything_is_written(
    folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    words = ["compare", *map(str, folders), "--output", str(output), "--reference"]
    assert main([*words, "nobody"])
    error = capsys.readouterr().err
    assert "unknown reference 'nobody'; choose from base, higher, copy" in error
    assert not output.exists()
    with pytest.raises(ValueError, match="no other method to compare with the reference 'base'"):
        compare(folders[::3], output, reference="base")


def test_the_difference_is_that_of_the_means_over_the_common_seeds(scored: MakeScored) -> None:
    folders = [
        scored("base", [10, 30], [50, 50], 2),
        scored("base", [0, 100], [50, 60], 0),
        scored("base", [99, 99], [99, 99], 5),  # of the reference alone
        scored("other", [100, 0], [40, 40], 0),
        scored("other", [60, 60], [80, 0], 2),
        scored("other", [0, 0], [0, 0], 7),
        scored("third", [99, 98], [99, 98], 5),
    ]
    row = table_of(folders).rows["other"]
    assert row.seeds == (0, 2)
    assert row.ahead == 1  # 45 and 52.5 with seed 0, 50 and 35 with seed 2
    assert row.tasks["color"].value == pytest.approx((0 + 40) / 2)
    assert row.tasks["count"].value == pytest.approx((-15 - 10) / 2)
    assert row.last.value == pytest.approx((-7.5 + 15) / 2)
    third = table_of(folders).rows["third"]
    assert third.seeds == (5,)
    assert (third.last.value, third.last.low, third.last.high) == (-0.5, -1.0, 0.0)
    assert "One seed in common (third): the interval is over test samples alone" in notes_of(
        table_of(folders)
    )


def test_samples_are_paired_by_id_and_not_by_position(folders: list[Path]) -> None:
    before = table_of(folders)
    file = folders[1] / "predictions" / "stage_2.jsonl"
    file.write_text("".join(reversed(file.read_text().splitlines(keepends=True))))
    assert table_of(folders) == before


def test_methods_without_a_common_seed_or_predictions_say_so(scored: MakeScored) -> None:
    folders = [
        scored("base", [50, 40], [30, 20], 0),
        scored("base", [50, 40], [30, 20], 1),
        scored("elsewhere", [50, 40], [30, 20], 3),
        scored("silent", [50, 40], [30, 20], 0),
        scored("silent", [50, 40], [30, 20], 1),
        scored("fine", [50, 40], [30, 20], 1),
    ]
    (folders[4] / "predictions" / "stage_2.jsonl").unlink()
    table = table_of(folders)
    assert {method: row.last.verdict for method, row in table.rows.items()} == {
        "elsewhere": "n/a",
        "silent": "n/a",
        "fine": "level",
    }
    text = notes_of(table)
    assert (
        "n/a for elsewhere: no seed in common with the reference (elsewhere: 3; base: 0, 1)."
        in text
    )
    assert (
        "n/a for silent: no predictions of the last stage "
        "(silent with seed 1: predictions/stage_2.jsonl)."
    ) in text
    (folders[1] / "predictions" / "stage_2.jsonl").unlink()
    table = table_of([*folders[:2], *folders[3:]])
    assert "n/a for all methods: no predictions of the last stage (first: base" in notes_of(table)


def test_a_run_without_a_seed_is_no_pair(scored: MakeScored) -> None:
    folders = [scored(name, [50, 40], [30, 20], 0) for name in ("base", "other")]
    for folder in folders:
        name = folder.parent.name
        (folder / "config.yaml").write_text(f"trainer: {{name: {name}}}\n")
    assert "(other: no seed; base: no seed)" in notes_of(table_of(folders))


def test_a_score_that_is_no_mean_over_samples_is_left_out_and_named(scored: MakeScored) -> None:
    folders = [
        scored(name, [50, 40], [30 + up, 20 + up]) for name, up in (("base", 0), ("other", 9))
    ]
    write_lines(folders[1], lines_of({"color": [50, 40.001], "count": [39, 29]}))
    table = table_of(folders)
    row = table.rows["other"]
    assert row.last.verdict == row.tasks["color"].verdict == "n/a"
    assert row.tasks["count"] == PairedDifference(9.0, 9.0, 9.0)
    assert (
        "n/a in color and Last for other: the score of the task is no mean over its samples, as "
        "with a metric of the whole set (other with seed 0: 45.0005 over the samples, 45 in the "
    ) in notes_of(table)


def test_a_task_without_predictions_is_named(scored: MakeScored) -> None:
    folders = [scored(name, [50, 40], [30, 20]) for name in ("base", "other")]
    write_lines(folders[0], lines_of({"color": [50, 40]}))
    text = notes_of(table_of(folders))
    assert "n/a in count and Last for other: no score or no predictions of the task" in text


@pytest.mark.parametrize(
    ("scores", "found"), [([50, 50, 50], "2 and 3, .* has '2'"), ([50], "2 and 1, .* has '1'")]
)
def test_other_test_samples_are_refused(
    scored: MakeScored, scores: list[float], found: str
) -> None:
    folders = [scored("base", [50, 50], [50, 50]), scored("other", scores, [50, 50])]
    message = (
        rf"base/version_0 and .*other/version_0 differ .* task 'color': {found}; without --ref"
    )
    with pytest.raises(ValueError, match=message):
        table_of(folders)


def test_seeds_may_have_drawn_other_test_samples(scored: MakeScored) -> None:
    folders = [
        scored(name, [50, 40 + up], [30, 20], seed)
        for name, up in (("base", 0), ("other", 8))
        for seed in (0, 1)
    ]
    for folder in folders[1::2]:
        lines = lines_of({"color": [50, 40 + 8 * ("other" in str(folder))], "count": [30, 20]})
        write_lines(folder, [line | {"id": "x" + line["id"]} for line in lines])
    row = table_of(folders).rows["other"]
    assert row.tasks["color"] == PairedDifference(4.0, 0.0, 8.0)
    assert row.tasks["count"] == PairedDifference(0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"score": None}, "the score of sample '1' must be a number, got None"),
        ({"score": True}, "the score of sample '1' must be a number, got True"),
        ({"score": float("nan")}, "the score of sample '1' must be a number, got nan"),
        ({"id": 1}, "the id of a sample must be text, got 1"),
        ({"id": "0"}, "sample '0' occurs twice"),
    ],
)
def test_broken_predictions_are_refused(
    scored: MakeScored, broken: dict[str, Any], message: str
) -> None:
    folders = [scored(name, [50, 40], [30, 20]) for name in ("base", "other")]
    lines = lines_of({"color": [50, 40], "count": [30, 20]})
    write_lines(folders[1], [lines[0], lines[1] | broken, *lines[2:]])
    with pytest.raises(ValueError, match=rf"other/.*stage_2\.jsonl: task 'color': {message}"):
        table_of(folders)


@pytest.mark.usefixtures("without_pictures")
def test_a_method_that_is_given_more_is_marked(scored: MakeScored, tmp_path: Path) -> None:
    routed = {"model": {"router": {"class_path": "dmole.routing.OracleRouter"}}}
    folders = [scored("base", [50, 40], [30, 20]), scored("known", [60], [70], config=routed)]
    write_lines(folders[0], lines_of({"color": [45], "count": [25]}))
    text = compare(folders, tmp_path, reference="base")
    assert "| known‡ | 1 | 1 of 1 | +30.00 | [+30.00, +30.00] | better |" in text
    assert text.count("### Paired differences") == 2
    for name in ("comparison.tex", "per_task.tex"):
        _, _, paired = (tmp_path / name).read_text().partition("Paired differences")
        assert r"$^\ddagger$ task identity given at test." in paired
