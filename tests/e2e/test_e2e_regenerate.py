"""The answers that other thresholds need are generated once, by the experts of the run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dmole.cli.main import main
from dmole.report.page.page import render
from dmole.report.page.record import RunRecord
from dmole.report.regenerated import FILE, read_regenerated
from dmole.storage.digests import read_digests
from dmole.storage.predictions import read_stage


@pytest.fixture
def run(quick_run: Path, tmp_path: Path) -> Path:
    """A copy of the run in which only the answers of the last stage are left."""
    run = Path(shutil.copytree(quick_run, tmp_path / "run"))
    for stage in (0, 1):
        (run / "predictions" / f"stage_{stage}.jsonl").unlink()
    return run


def test_generated_answers_are_those_of_the_run_and_are_kept(
    run: Path, quick_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "RUN --regenerate generates them" in render([RunRecord(run)])
    assert main(["report", str(run), "--regenerate"]) == 0
    digests = read_digests(run)
    assert digests is not None
    answers = read_regenerated(run, digests.files)
    assert f"{run}: answers generated: {len(answers)}" in capsys.readouterr().out
    assert "--regenerate" not in (run / "report.html").read_text()
    base = {
        (task, line["id"]): (line["prediction"], line["score"])
        for task, lines in read_stage(quick_run, 0).items()
        for line in lines
    }
    found = {(a.task, a.id): (a.prediction, a.score) for a in answers if a.gate_set == "base"}
    assert len(found) > 4
    assert found == {key: base[key] for key in found}
    assert main(["report", str(run), "--regenerate"]) == 0
    assert "answers generated: 0" in capsys.readouterr().out


def test_answers_of_other_experts_and_damaged_lines_are_not_used(run: Path) -> None:
    line = {"task": "paint", "id": "paint-test-0-0", "gate_set": "paint", "experts": "0" * 64}
    line |= {"prediction": "so", "score": 100.0}
    (run / FILE).write_text(json.dumps(line) + "\n")
    assert read_regenerated(run, {}) == []
    (run / FILE).write_text(json.dumps({**line, "score": 1e300}) + "\n")
    with pytest.raises(ValueError, match=f"{FILE}: line 1: expected an answer"):
        read_regenerated(run, {})
    assert f"{FILE}: line 1: expected an answer" in render([RunRecord(run)])


def test_a_run_without_embeddings_is_refused_in_one_line(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(run / "embeddings")
    assert main(["report", str(run), "--regenerate"]) == 1
    assert "cannot be routed again: " in capsys.readouterr().err
    assert not (run / FILE).exists()


def test_other_test_data_are_refused_in_one_line(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = (run / "model.json").read_text()
    digests = (run / "digests.json").read_text()
    for test, message in (
        ("gone.json", "gone.json"),
        ("synthetic://paint/test?size=9", "test samples of task 'paint' are not those of"),
    ):
        changed = json.loads(settings)
        changed["data"]["tasks"][0]["test"] = test
        (run / "model.json").write_text(json.dumps(changed))
        content = json.loads(digests)
        content["files"].pop("model.json", None)
        (run / "digests.json").write_text(json.dumps(content))
        assert main(["report", str(run), "--regenerate"]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
