"""Runs answer in other harnesses as in their own evaluation."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

import dmole
from dmole.cli.main import main
from dmole.data.sources.text import TsvFile
from dmole.harness.tasks import export_tasks
from dmole.inference import Request
from dmole.run.loading import build_data
from dmole.run.model_file import read_run_settings
from dmole.storage.predictions import read_stage

ROOT = Path(__file__).resolve().parents[2]


def test_a_run_loaded_at_a_stage_answers_as_after_it(quick_run: Path) -> None:
    data = build_data(read_run_settings(quick_run))
    for stage in (0, 1):
        model = dmole.load(quick_run, stage=stage)
        assert model.experts == ("paint",)[:stage]
        for task, lines in read_stage(quick_run, stage).items():
            samples = data.test_samples(task)
            answers = model.answer([Request(s.turns, s.images, 4) for s in samples])
            found = [("+".join(answer.experts) or "base", answer.text) for answer in answers]
            assert found == [(line["gate_set"], line["prediction"]) for line in lines]


def test_a_stage_that_cannot_be_restored_is_one_line(quick_run: Path) -> None:
    with pytest.raises(ValueError, match="version_0 has the stages 0 to 2, not 3"):
        dmole.load(quick_run, stage=3)


def test_predictions_for_vlmevalkit_are_the_answers_of_the_run(
    quick_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "Quiz.tsv"
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = [["index", "question", "answer"], ["3", "how many?", "two"], ["9", "why?", "so"]]
        csv.writer(file, delimiter="\t").writerows(rows)
    words = ["predict", str(quick_run), "--input", str(path), "--max_new_tokens", "4"]
    assert main([*words, "--vlmevalkit", str(tmp_path / "out"), "--model_name", "mine"]) == 0
    written = tmp_path / "out" / "mine_Quiz.tsv"
    assert capsys.readouterr().out == f"{written}\n"
    model = dmole.load(quick_run)
    expected = model.generate(prompt=["how many?", "why?"], max_new_tokens=4)
    assert [row["prediction"] for row in TsvFile(written).rows()] == expected
    assert main(words) == 1
    assert "is a table of VLMEvalKit: name the --vlmevalkit FOLDER" in capsys.readouterr().err


def test_the_entry_point_names_the_manifest() -> None:
    tomllib = pytest.importorskip("tomllib")  # since Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    points = project["entry-points"]["lmms_eval.models"]
    assert points == {"dmole": "dmole.harness.manifest:manifest"}
    assert importlib.util.find_spec("dmole.harness._lmms_model") is not None


def evaluate(folder: Path, *arguments: str) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Return the scores and the answers of lmms-eval by task."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    words = [sys.executable, "-m", "lmms_eval", "--model", "dmole", *arguments]
    words += ["--tasks", "dmole_all", "--include_path", str(folder / "tasks"), "--log_samples"]
    out = folder / "out"
    environment = os.environ | offline | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*words, "--output_path", str(out)], env=environment, capture_output=True, text=True
    )
    results = list(out.rglob("*results.json"))
    assert len(results) == 1, done.stderr  # lmms-eval exits with 0 after an error, too
    scores = json.loads(results[0].read_text(encoding="utf-8"))["results"]
    answers = {}
    for path in out.rglob("*_samples_dmole_*.jsonl"):
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        lines.sort(key=lambda line: line["doc_id"])
        answers[path.stem.rpartition("_dmole_")[2]] = [line["filtered_resps"] for line in lines]
    return scores, answers


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_lmms_eval_finds_the_answers_and_scores_of_the_run(
    stage: int, quick_run: Path, tmp_path: Path
) -> None:
    pytest.importorskip("lmms_eval")
    if "dmole" not in entry_points(group="lmms_eval.models").names:
        pytest.skip("dmole is not installed with its entry points")
    data = build_data(read_run_settings(quick_run))
    export_tasks(data, tmp_path / "tasks")
    arguments = f"run={quick_run},stage={stage},device=cpu"
    scores, answers = evaluate(tmp_path, "--model_args", arguments, "--batch_size", "8")
    lines = read_stage(quick_run, stage)
    assert answers == {t: [line["prediction"] for line in own] for t, own in lines.items()}
    for task, own in lines.items():
        mean = sum(line["score"] for line in own) / len(own)
        assert scores[f"dmole_{task}"]["score,none"] == mean
