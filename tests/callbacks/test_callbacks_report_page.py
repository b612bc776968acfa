from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dmole.callbacks import ReportPage, default_callbacks
from dmole.metrics import write_matrix


def state_of(run_dir: Path, *, first_rank: bool = True) -> Any:
    return SimpleNamespace(run_dir=run_dir, is_global_zero=first_rank)


def test_the_page_is_written_after_a_stage_and_completed_at_the_end(tmp_path: Path) -> None:
    write_matrix(tmp_path / "evaluation_matrix.csv", [[0.0], [50.0]], ["paint"])
    callback, module, page = ReportPage(), SimpleNamespace(), tmp_path / "report.html"
    callback.on_evaluation_end(state_of(tmp_path, first_rank=False), module)  # type: ignore[arg-type]
    assert not page.exists()
    callback.on_evaluation_end(state_of(tmp_path), module)  # type: ignore[arg-type]
    assert "Written while the run was in progress" in page.read_text()
    callback.on_sequence_end(state_of(tmp_path), module)  # type: ignore[arg-type]
    assert "Written while the run was in progress" not in page.read_text()


def test_an_error_is_a_warning_and_the_run_continues(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("dmole"), "propagate", True)
    (tmp_path / "report.html").mkdir()  # cannot be replaced by a file
    ReportPage().on_sequence_end(state_of(tmp_path), SimpleNamespace())  # type: ignore[arg-type]
    found = {record.getMessage().partition(":")[0] for record in caplog.records}
    assert found == {"no report.html"}  # handlers of an earlier command may repeat it


@pytest.mark.parametrize("report", [True, False])
def test_a_setting_leaves_it_out(report: bool) -> None:
    settings: dict[str, Any] = {"progress_bar": False, "checkpoint_every_n_steps": 0}
    found = default_callbacks([], **settings, case_images=0, report=report)
    assert any(isinstance(callback, ReportPage) for callback in found) == report
