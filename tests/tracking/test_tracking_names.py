"""Names of trackers: checked early, and set by the command line alone."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from jsonargparse import Namespace
from lightning.pytorch.loggers import CSVLogger, Logger

from dmole.callbacks import EvaluationMatrix
from dmole.cli.trust import check_trackers
from dmole.tracking import (
    TRACKERS,
    RunResults,
    TrackedRun,
    Tracker,
    Tracking,
    check_names,
    results_of,
)
from dmole.trainer import ContinualTrainer


def test_a_name_that_is_unknown_or_not_installed_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert check_names(["tensorboard", "tensorboard"]) == ["tensorboard"]
    with pytest.raises(ValueError, match=r"names 'neptune'; there are tensorboard, wandb, mlflow"):
        ContinualTrainer(report_to=["tensorboard", "neptune"], accelerator="cpu")
    monkeypatch.setattr(TRACKERS["swanlab"], "package", "swanlab_is_not_here")
    with pytest.raises(ValueError, match=r"pip install 'dmole\[swanlab\]'$"):
        ContinualTrainer(report_to=["swanlab"], accelerator="cpu")


def test_the_packages_of_all_trackers_are_extras() -> None:
    tomllib = pytest.importorskip("tomllib")  # since Python 3.11

    pyproject = Path(__file__).parents[2] / "pyproject.toml"
    extras = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    assert TRACKERS.keys() <= extras["optional-dependencies"].keys()


def test_names_decide_about_the_events_file_and_loggers_are_added(tmp_path: Path) -> None:
    csv = CSVLogger(str(tmp_path))
    place = {"accelerator": "cpu", "default_root_dir": str(tmp_path)}
    both = ContinualTrainer(loggers=[csv], **place)  # type: ignore[arg-type]
    assert [type(logger).__name__ for logger in both.loggers] == ["RunBoard", "CSVLogger"]
    none = ContinualTrainer(report_to=[], **place)  # type: ignore[arg-type]
    assert none.loggers == []
    none.sequence.write_to(tmp_path / "run")
    assert none.loggers == []
    both.sequence.write_to(tmp_path / "run")
    assert both.run_dir == tmp_path / "run"
    assert both.loggers == [both.sequence.board, csv]


@pytest.mark.parametrize("verb", ["", "fit"])
def test_a_tracker_is_named_by_the_command_line_alone(verb: str) -> None:
    trainer = Namespace(report_to=["tensorboard", "wandb"])
    inner = Namespace(trainer=trainer)
    config = Namespace(fit=inner) if verb else inner
    for words in (
        ["fit", "--config", "wandb.yaml"],
        ["--trainer.report_to", "[tensorboard]"],
        ["--trainer.report_to+", "wandb"],
        ["--trainer.name", "wandb"],
    ):
        with pytest.raises(ValueError, match=r"'wandb' may send data away .*--trainer\.report_to"):
            check_trackers(config, words)
    check_trackers(config, ["fit", "--trainer.report_to", "[tensorboard,wandb]"])
    check_trackers(config, ["fit", "--trainer.report_to=['wandb']"])
    trainer.report_to = ["tensorboard"]
    check_trackers(config, ["fit"])
    trainer.report_to = None
    check_trackers(config, ["fit"])


class Broken(Tracker):
    """A tracker whose server is gone, at the start or at the end."""

    package = "logging"
    at_start = False

    def start(self, run: TrackedRun) -> Logger:
        if self.at_start:
            raise RuntimeError("no answer\nfrom the server")
        return CSVLogger(".")

    def publish(self, results: RunResults) -> None:
        raise RuntimeError("no answer\nfrom the server")


def test_a_tracker_that_fails_at_the_end_is_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    state: Any = ContinualTrainer(default_root_dir=str(tmp_path), accelerator="cpu").sequence
    monkeypatch.setitem(TRACKERS, "wandb", Broken)
    monkeypatch.setattr("dmole.tracking.tracking.run_hyperparameters", lambda *_: {})
    monkeypatch.setattr("dmole.tracking.tracking.results_of", lambda *_: None)
    tracking = Tracking(["wandb"])
    tracking.start(state, Any)  # type: ignore[arg-type]
    assert len(state.trainer.loggers) == 2
    caplog.clear()
    with caplog.at_level(logging.WARNING, "dmole"):
        tracking.finish(state)
    (line,) = caplog.messages
    assert line == "trainer.report_to: wandb did not take all results: no answer from the server"
    monkeypatch.setattr(Broken, "at_start", True)
    with pytest.raises(ValueError, match="report_to: wandb did not start: no answer from"):
        Tracking(["wandb"]).start(state, Any)  # type: ignore[arg-type]


def test_only_the_first_process_reports(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    state: Any = ContinualTrainer(default_root_dir=str(tmp_path), accelerator="cpu").sequence
    monkeypatch.setitem(TRACKERS, "wandb", Broken)
    monkeypatch.setattr(Broken, "at_start", True)
    monkeypatch.setattr(type(state), "is_global_zero", False)
    tracking = Tracking(["wandb"])
    tracking.start(state, Any)  # type: ignore[arg-type]
    tracking.finish(state)


def test_trackers_keep_no_weights_data_links_or_large_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, table = tmp_path, EvaluationMatrix()
    table.matrix = table.oracle = np.array([[50.0, np.nan]])
    data = SimpleNamespace(column_names=("paint", "count"))
    state: Any = SimpleNamespace(run_dir=run, data=data, callback_of=lambda kind: table)
    metrics = {"Last": 50.0, "per_task": {"paint": {"Last": 50.0, "BWT": None}}}
    (run / "metrics.json").write_text(json.dumps(metrics))
    (run / "timing.json").write_text("x" * 1000)
    for name in ("report.html", "case_images.jsonl"):  # they show test samples
        (run / name).write_text("")
    (run / "config.yaml").symlink_to("/etc/hostname")
    for name in ("experts/paint", "figures", "embeddings", "checkpoints"):
        (run / name).mkdir(parents=True, exist_ok=True)
        (run / name / "a.png").write_text("")
    monkeypatch.setattr("dmole.tracking.results.LARGEST", 999)
    results = results_of(state)
    kept = [str(path.relative_to(run)) for path in results.files]
    assert kept == ["metrics.json", "figures/a.png"]
    assert results.figures == {"final/Last": 50.0}
    assert results.tables["evaluation_matrix"].rows == [[0.0, 50.0, None]]
    assert results.tables["metrics"].rows == [["paint", 50.0, None]]
