from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from small_runs import Recipe

from dmole.cli.main import main
from dmole.data import Task
from dmole.storage.predictions import read_stage

QUESTIONS = ["what is shown?", "which one is it?"]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def chosen_options(tmp_path: Path) -> Task:
    """A task of multiple choice, whose metric needs the choices and has two profiles."""
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    items = [
        {"id": f"q{n}", "image": "red.png", "text": text, "choices": ["cat", "dog"], "answer": n}
        for n, text in enumerate(QUESTIONS)
    ]
    (tmp_path / "items.json").write_text(json.dumps(items))
    source = str(tmp_path / "items.json")
    return Task("options", source, source, metric="dmole_multichoice:corrected", max_new_tokens=3)


def test_a_run_keeps_both_profiles_and_its_predictions_can_be_scored_again(
    chosen_options: Task, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Recipe(tasks=("paint", chosen_options)).build(tmp_path / "runs").fit()
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert list(metrics["profiles"]) == ["options"]
    assert list(metrics["profiles"]["options"]) == ["published", "corrected"]
    assert metrics["scoring"]["options"]["missing"] == 0
    answers = read_stage(run, 2)
    for line, letter in zip(answers["options"], "AB", strict=True):
        assert line["references"] == [letter]
        assert line["scores"]["corrected"] == line["score"]
        assert line["metadata"]["choices"] == ["cat", "dog"]
    assert "scores" not in answers["paint"][0]
    capsys.readouterr()
    words = ["score", str(run / "predictions" / "stage_2.jsonl"), "--metric", "dmole_multichoice"]
    assert main(words) == 1
    assert "has the predictions of paint, options: choose by --of" in capsys.readouterr().err
    assert main([*words, "--of", "read"]) == 1
    assert "of paint, options, not of 'read'" in capsys.readouterr().err
    assert main([*words, "--of", "options", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["profiles"] == metrics["profiles"]["options"]
