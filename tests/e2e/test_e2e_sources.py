"""Tasks from every kind of source are learned, and examined, as a user would do it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_runs import NO_FIGURES
from source_files import KINDS, write_kind

from dmole.cli.main import main
from dmole.storage.predictions import read_stage


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Write a task of 4 and 2 samples from each kind of source, and a config of them all."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DMOLE_CACHE", str(tmp_path / "cache"))
    tasks: list[dict[str, Any]] = [
        {"name": kind, "max_new_tokens": 2, **write_kind(kind, Path(kind))} for kind in KINDS
    ]
    data = {"tasks": tasks, "batch_size": 4, "eval_batch_size": 2}
    Path("own.yaml").write_text(yaml.safe_dump({"data": data}))
    return "own.yaml"


@pytest.mark.slow
def test_tasks_of_every_kind_are_learned_in_one_stage(
    config: str, fit_words: Callable[..., list[str]], tmp_path: Path
) -> None:
    joint = ("--trainer.stream", "JointStream")
    assert main(fit_words(tmp_path / "runs", "--config", config, *joint, *NO_FIGURES)) == 0
    answers = read_stage(tmp_path / "runs" / "small" / "version_0", 1)
    for kind in KINDS:
        colors = {"A"} if kind == "vlmevalkit" else {"black", "gray"}
        assert {line["references"][0] for line in answers[kind]} == colors


def test_tasks_of_every_kind_are_examined(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data", "check", "--config", "quickstart.yaml", "--config", config]
    assert main([*words, "--json", "report.json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "conversations in JSON" in lines[1]
    report = json.loads(Path("report.json").read_text())
    assert report["errors"] == 0
    splits = [split for task in report["tasks"] for split in task["splits"].values()]
    assert [split["items"] for split in splits] == [4, 2] * len(KINDS)
    assert all(split["shape"] and split["tokens"]["samples"] for split in splits)
