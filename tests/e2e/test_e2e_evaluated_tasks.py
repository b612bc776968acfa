"""A run that does not evaluate all tasks learns the same, and says which figures are missing."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuts import CutAt, CutError
from run_digests import run_digests
from small_runs import Recipe, small_task

from dmole.allocation import UniformAllocator
from dmole.callbacks import EvaluationMatrix
from dmole.cli.main import main
from dmole.data import Task
from dmole.metrics import read_matrix
from dmole.report.page import write_report
from dmole.report.runs import load_run
from dmole.routing import SharedRouter
from dmole.storage.predictions import predicted_stages, read_stage
from dmole.streams.stream import SequentialStream

SCORED = Task("find", test="synthetic://find/test?size=4", max_new_tokens=3, eval_only=True)
TASKS = ("paint", "count", SCORED)
CELLS = {
    "all": [[1, 1, 1], [1, 1, 1], [1, 1, 1]],
    "seen": [[0, 0, 1], [1, 0, 0], [1, 1, 1]],
    "last": [[0, 0, 0], [0, 0, 0], [1, 1, 1]],
}
"""Which cells of paint, count and find are evaluated, by stage."""


def recipe(evaluate: str, tasks: Any = TASKS, **trainer: Any) -> Recipe:
    return Recipe(tasks, trainer={"evaluate": evaluate, **trainer})


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str]]:
    """A run with each setting, and what it logged."""
    found = {}
    for evaluate in CELLS:
        lines: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda r, to=lines: to.append(r.getMessage())  # type: ignore[method-assign]
        log = logging.getLogger("dmole")
        level = log.level
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        run = recipe(evaluate).build(tmp_path_factory.mktemp(evaluate)).fit()
        log.removeHandler(handler)
        log.setLevel(level)
        (run / "config.yaml").write_text(f"trainer: {{name: {evaluate}}}\n")
        found[evaluate] = run, "\n".join(lines)
    return found


def metrics_of(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    return content


@pytest.mark.parametrize("evaluate", CELLS)
def test_cells_are_those_of_a_full_run_or_empty(
    evaluate: str, runs: dict[str, tuple[Path, str]]
) -> None:
    run, full = runs[evaluate][0], runs["all"][0]
    matrix, _ = read_matrix(run / "evaluation_matrix.csv")
    whole, _ = read_matrix(full / "evaluation_matrix.csv")
    wanted = np.array(CELLS[evaluate], dtype=bool)
    np.testing.assert_array_equal(matrix, np.where(wanted, whole, np.nan))
    assert predicted_stages(run) == [stage for stage in range(3) if any(CELLS[evaluate][stage])]
    for stage in predicted_stages(run):
        theirs = read_stage(full, stage)
        assert all(lines == theirs[task] for task, lines in read_stage(run, stage).items())
    ours, theirs = run_digests(run), run_digests(full)
    learned = [name for name in theirs if name.startswith(("experts", "router/"))]
    assert learned
    assert {name: ours[name] for name in learned} == {name: theirs[name] for name in learned}


def test_missing_figures_are_null_with_a_reason_and_the_others_have_their_value(
    runs: dict[str, tuple[Path, str]],
) -> None:
    full = metrics_of(runs["all"][0])
    assert "evaluated" not in full
    missing = {
        "seen": {"AVG", "Transfer"},
        "last": {"AVG", "Learned", "BWT", "MAA", "Forgetting", "Transfer", "retention"},
    }
    for evaluate, names in missing.items():
        run, log = runs[evaluate]
        metrics = metrics_of(run)
        stated = metrics["evaluated"]
        assert stated["tasks"] == evaluate
        assert stated["learned"] == [["paint"], ["count"]]
        assert set(stated["missing"]) == names
        for name in ("AVG", "Last", "Learned", "BWT", "MAA", "ACC", "Forgetting", "Transfer"):
            assert metrics[name] == (None if name in names else full[name]), name
        assert metrics["retention"]["change"] == (
            None if "retention" in names else full["retention"]["change"]
        )
        assert f"(evaluate: {evaluate}). Missing: AVG, " in log
        named = {"seen": "Transfer: evaluate: seen leaves out", "last": "AVG, Learned, BWT"}
        assert named[evaluate] in log


@pytest.mark.slow
def test_avg_over_the_stages_that_have_seen_a_task_does_not_need_the_others(tmp_path: Path) -> None:
    matrix = EvaluationMatrix(avg_scope="seen")
    built = Recipe(trainer={"evaluate": "seen"}, callbacks=[matrix]).build(tmp_path)
    metrics = metrics_of(built.fit())
    scores, _ = read_matrix(built.trainer.run_dir / "evaluation_matrix.csv")
    assert metrics["AVG"] == np.mean([scores[1:, 0].mean(), scores[2, 1]])
    assert set(metrics["evaluated"]["missing"]) == {"Transfer", "unseen_accepted"}


@pytest.mark.parametrize("evaluate", ["seen", "last"])
def test_reports_say_so_and_know_the_stages(
    evaluate: str, runs: dict[str, tuple[Path, str]], tmp_path: Path
) -> None:
    run = shutil.copytree(runs[evaluate][0], tmp_path / "run")
    loaded = load_run(run)
    assert loaded.evaluated == evaluate
    assert loaded.task_of_stage == [[0], [1]]
    page = write_report([run], tmp_path / "page.html").read_text(encoding="utf-8")
    assert f"(evaluate: {evaluate}). Missing: AVG" in page
    assert "and once before training" not in page or evaluate == "seen"


def test_runs_with_other_cells_are_compared_only_if_that_is_allowed(
    runs: dict[str, tuple[Path, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compare", "--output", str(tmp_path / "comparison")]
    words += [str(runs[name][0]) for name in ("all", "seen")]
    assert main(words) == 1
    refused = capsys.readouterr().err
    assert "evaluated (trainer.evaluate): all and seen; --allow evaluate compares" in refused
    assert main([*words, "--allow", "evaluate"]) == 0
    text = capsys.readouterr().out
    assert "seen: Evaluated: after each stage the tasks learned so far (evaluate: seen)." in text


def test_another_value_is_refused_at_a_resume_unless_it_is_accepted(tmp_path: Path) -> None:
    cut = recipe("last")
    cut.callbacks = [CutAt(2, "train")]
    with pytest.raises(CutError):
        cut.build(tmp_path).fit()
    with pytest.raises(ValueError, match=r"made with another setting 'trainer\.evaluate'"):
        recipe("seen").build(tmp_path).fit(Path("auto"))
    resumed = recipe("all", accept_changes=True).build(tmp_path).fit(Path("auto"))
    (resumed / "config.yaml").write_text("trainer: {name: resumed}\n")
    (change,) = metrics_of(resumed)["accepted_changes"]
    assert (change["before"], change["from_stage"]) == ("last", 2)
    stated = metrics_of(resumed)["evaluated"]
    assert stated["tasks"] == "all"
    assert "before evaluate was changed" in stated["missing"]["BWT"]
    assert load_run(resumed).task_of_stage == [[0], [1]]


def test_a_run_is_evaluated_again_on_the_same_cells_or_on_all(
    runs: dict[str, tuple[Path, str]], tmp_path: Path
) -> None:
    for evaluate in ("seen", "all"):
        built, output = recipe(evaluate).build(tmp_path / "none"), tmp_path / evaluate
        built.trainer.evaluate(built.module, built.data, run=runs["seen"][0], output=output)
        expected = runs[evaluate][0]
        for name in ("evaluation_matrix.csv", "oracle_matrix.csv"):
            assert (output / name).read_bytes() == (expected / name).read_bytes()


@pytest.mark.slow
def test_cells_that_cannot_be_evaluated_again_are_no_matter_of_the_setting(tmp_path: Path) -> None:
    shared = {"stream": SequentialStream(shared_expert="shared"), "router": SharedRouter}
    shared["allocator"] = UniformAllocator
    run = replace(recipe("seen"), **shared).build(tmp_path).fit()
    built, output = replace(recipe("seen"), **shared).build(tmp_path / "none"), tmp_path / "again"
    built.trainer.evaluate(built.module, built.data, run=run, output=output)
    metrics = metrics_of(output)
    assert metrics["BWT"] is metrics["Learned"] is None  # the adapter of stage 1 is gone
    assert list(metrics["evaluated"]["missing"]) == ["Transfer"]


@pytest.mark.slow
@pytest.mark.parametrize("evaluate", ["all", "seen", "last"])
def test_an_extension_fills_the_cells_that_its_setting_asks_for(
    evaluate: str, runs: dict[str, tuple[Path, str]], tmp_path: Path
) -> None:
    shutil.copytree(runs["seen"][0], tmp_path / "parent")
    tasks = ("paint", "count", small_task("caption"), SCORED)
    trainer = {"fill_rows": True, "accept_changes": True}
    run = recipe(evaluate, tasks, **trainer).build(tmp_path / "child").fit(tmp_path / "parent")
    matrix, names = read_matrix(run / "evaluation_matrix.csv")
    assert names == ["paint", "count", "caption", "find"]
    cells = {
        "all": np.ones((4, 4)),
        # the parent has evaluated find after its own last stage
        "seen": [[0, 0, 0, 1], [1, 0, 0, 0], [1, 1, 0, 1], [1, 1, 1, 1]],
        "last": [[0, 0, 0, 1], [1, 0, 0, 0], [1, 1, 0, 1], [1, 1, 1, 1]],
    }
    np.testing.assert_array_equal(~np.isnan(matrix), np.array(cells[evaluate], dtype=bool))


def test_an_unknown_value_is_refused() -> None:
    with pytest.raises(ValueError, match="must be 'all', 'seen' or 'last', got 'some'"):
        recipe("some").build(Path())
