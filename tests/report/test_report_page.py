"""The HTML page of runs of every state."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dmole.cli.main import main
from dmole.report.page.page import render, write_report
from dmole.report.page.record import RunRecord

MakeRun = Callable[..., Path]
SMALL = ("evaluation_matrix.csv", "oracle_matrix.csv", "metrics.json", "timing.json", "config.yaml")


def text_of(folder: Path) -> str:
    return render([RunRecord(folder)])


def test_the_page_holds_figures_with_definitions_and_the_gap(runs: list[Path]) -> None:
    text = text_of(runs[2])
    assert "mean_i (R[S,i] - R[s_i,i])" in text
    assert "divided by the number of learned tasks; divisor 2" in text
    assert "missing: the numbers of test samples are unknown" in text
    assert 'title="color after stage 2 count: 40.00"' in text
    assert "Gap: oracle - score" in text
    assert "://" not in text  # nothing is fetched, and no link leaves the page


@pytest.mark.parametrize("name", ["llava-hf/llava-1.5-7b-hf", "/home/me/llava-1.5-7b-hf"])
def test_the_summary_names_the_base_model_without_its_folder(
    name: str, tmp_path: Path, make_run: MakeRun
) -> None:
    backbone = {"class_path": "x.B", "init_args": {"name_or_path": name}}
    run = make_run(
        tmp_path / "d", "dmole", [[0, 0], [90, 5]], config={"model": {"backbone": backbone}}
    )
    shown = name if name.startswith("llava") else "llava-1.5-7b-hf"
    assert f"<dt>Base model</dt><dd>{shown}</dd>" in text_of(run)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("content", [None, b"", b"\xff\x00", b'{"a": [', b"[]", b"1,2\n3"])
def test_a_lost_or_damaged_file_never_stops_the_page(
    runs: list[Path], name: str, content: bytes | None
) -> None:
    path = runs[0] / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    text = text_of(runs[0])
    assert text.rstrip().endswith("</html>")
    assert ('class="error"' in text) == (content is not None)


def test_an_empty_folder_has_a_page(tmp_path: Path) -> None:
    assert "no results yet" in text_of(tmp_path)


def test_several_runs_stand_side_by_side(runs: list[Path], tmp_path: Path) -> None:
    text = write_report(runs, tmp_path / "page.html").read_text()
    sections = text.count("<section") - 1  # without the comparison
    assert text.count("<h3>d/version_0</h3>") == text.count("<h3>s/version_0</h3>") == sections > 3
    assert 'class="number best" data-sort="82.0">82.00' in text


def test_the_verb_prints_the_file_and_refuses_in_one_line(
    runs: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(runs[0])]) == 0
    assert capsys.readouterr().out == f"{runs[0] / 'report.html'}\n"
    assert main(["report", *map(str, runs)]) == 1
    assert capsys.readouterr().err == (
        "dmole: several runs share one page: name its file with --output\n"
    )
    assert main(["report", str(runs[0]), "--output", str(runs[0])]) == 1
    assert capsys.readouterr().err == f"dmole: --output {runs[0]} is a folder: name a file\n"
    assert main(["report", str(runs[0]), "--device", "cpu"]) == 1
    assert "--device needs --regenerate" in capsys.readouterr().err
    assert main(["report", str(runs[0] / "nowhere")]) == 1
    assert "no run folder" in capsys.readouterr().err
    assert main(["report", str(runs[0]), "--regenerate", "--device", "abacus"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("dmole: --device abacus: ")
    assert main(["report", str(runs[0].parent)]) == 1
    assert "holds no file of a run" in capsys.readouterr().err


def test_runs_of_one_name_are_told_apart_and_what_they_do_not_share_is_said(
    make_run: MakeRun, tmp_path: Path
) -> None:
    joint = {"trainer": {"name": "joint", "stream": {"class_path": "dmole.JointStream"}}}
    one = make_run(tmp_path / "a" / "d" / "version_0", "d", [[0, 0], [90, 5], [88, 70]])
    other = make_run(tmp_path / "b" / "d" / "version_0", "d", [[0, 0], [99, 99]], config=joint)
    text = write_report([one, other], tmp_path / "page.html").read_text()
    assert "<h3>a/d/version_0</h3>" in text
    assert "b/d/version_0 is never bold: trained on all tasks at once." in text
    assert "number best" not in text  # a single run has no other to be compared with
