"""The page of results says what its files say, and its search never saw a test sample."""

from __future__ import annotations

import csv
import json
import re
import shutil
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from dmole.report.runs import load_run
from dmole.storage.predictions import predicted_stages, read_stage
from experiments import results, results_jobs
from experiments.kept_results import COMMIT, commits, current_commit, is_kept, keep, kept_folder

ROOT = Path(__file__).resolve().parents[2]
OUTPUT = ROOT / "docs" / "results"
PAGE = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")

ROWS: dict[str, Any] = results_jobs.PLAN["rows"]
MISSING = re.findall(
    r"`(\w+)`", PAGE.partition("<!-- missing -->\n")[2].partition("<!-- end missing -->")[0]
)
"""Methods that were not run with every seed, as the page says."""


def read_csv(name: str) -> list[dict[str, str]]:
    with (OUTPUT / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def matrices() -> dict[str, dict[int, list[list[float]]]]:
    """Return the evaluation matrix by method and seed."""
    found: dict[str, dict[int, list[list[float]]]] = defaultdict(lambda: defaultdict(list))
    for line in read_csv("matrices.csv"):
        row, seed = line.pop("row"), int(line.pop("seed"))
        assert int(line.pop("stage")) == len(found[row][seed])
        found[row][seed].append([float(score) for score in line.values()])
    return found


def test_every_method_is_a_row_or_measured_on_another_page() -> None:
    elsewhere = results_jobs.PLAN["elsewhere"]
    methods = {path.stem for path in (ROOT / "configs" / "methods").glob("*.yaml")}
    assert {*ROWS, *elsewhere} == methods
    assert not {*ROWS} & {*elsewhere}
    for method, page in elsewhere.items():
        assert f"| {method} |" in (ROOT / page).read_text(encoding="utf-8")


def test_every_method_has_every_seed_and_every_stage_or_is_named_as_missing() -> None:
    found = matrices()
    whole = [row for row, runs in found.items() if sorted(runs) == results_jobs.PLAN["seeds"]]
    assert [row for row in ROWS if row not in MISSING] == whole
    for row, runs in found.items():
        shape = {"zero_shot": 1, "joint": 2}.get(row, 4), 3
        assert {np.shape(matrix) for matrix in runs.values()} == {shape}


def test_the_table_holds_the_means_of_the_matrices() -> None:
    shown = {line["method"]: line for line in read_csv("comparison.csv")}
    constant = shown.pop("constant answer")
    assert float(constant["Last"]) == pytest.approx((51 + 17 + 5) / 3)  # as the page says
    assert list(shown) == list(matrices())
    for row, runs in matrices().items():
        last = [np.mean(matrix[-1]) for matrix in runs.values()]
        assert float(shown[row]["Last"]) == pytest.approx(np.mean(last))
        if len(last) > 1:
            assert float(shown[row]["Last sd"]) == pytest.approx(np.std(last, ddof=1))


def test_neither_all_are_forgotten_nor_all_is_kept() -> None:
    last = {row: np.mean([m[-1] for m in runs.values()]) for row, runs in matrices().items()}
    assert last["zero_shot"] == 0
    assert last["finetune"] - last["seq_ft"] > 20
    between = [s for s in last.values() if last["seq_ft"] + 5 < s < last["finetune"] - 5]
    assert len(between) >= 5


@pytest.mark.parametrize(
    "row", [row for row, spec in ROWS.items() if "values" in spec and row not in MISSING]
)
def test_a_method_ran_with_the_best_value_of_the_search(row: str) -> None:
    key = ROWS[row]["vary"]
    scores = {
        line["value"]: float(line["Last"])
        for line in read_csv("search.csv")
        if line["row"] == ROWS[row].get("like", row) and line["key"] == key
    }
    ran = yaml.safe_load((OUTPUT / "configs" / f"{row}.yaml").read_text(encoding="utf-8"))
    for part in key.split("."):
        ran = ran[int(part) if part.isdigit() else part]
    assert set(scores) == {str(value) for value in ROWS[row]["values"]}
    assert scores[str(ran)] == max(scores.values())


def test_the_learning_rate_is_the_best_of_finetune() -> None:
    tried = {
        float(line["value"]): float(line["Last"])
        for line in read_csv("search.csv")
        if line["row"] == "shared_finetune"
    }
    comparison = yaml.safe_load((ROOT / "configs" / "comparison.yaml").read_text())
    assert comparison["model"]["optimizer"]["init_args"]["lr"] == max(tried, key=tried.__getitem__)


def test_the_search_sees_no_test_sample() -> None:
    jobs = results_jobs.search_jobs(list(ROWS))
    tasks = [task for job, _ in jobs for task in job.settings["data"]["tasks"]]
    assert tasks
    assert all("/val?" in task["test"] and "/train?" in task["train"] for task in tasks)
    assert results_jobs.PLAN["search"]["seed"] not in results_jobs.PLAN["seeds"]


def test_a_key_that_a_config_lacks_cannot_be_varied() -> None:
    with pytest.raises(KeyError, match="is not set in the method's config"):
        results_jobs.replaced({"model": {"alpha": 1}}, "model.beta", 2)
    replaced = results_jobs.replaced({"model": {"parts": [{"a": 1}]}}, "model.parts.0.a", 2)
    assert replaced == {"model": {"parts": [{"a": 2}]}}


def test_another_table_takes_runs_of_the_table_of_methods_and_keeps_its_own_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = {job.name: job for job in results_jobs.sweep_jobs("rank_budget")}
    assert jobs["dmole"] == results_jobs.final_jobs(["dmole"], [0])[0]
    assert jobs["dmole_rank_2"].folder(tmp_path) == tmp_path / "rank_budget/dmole_rank_2/version_0"
    other = {
        "configs": ["quickstart.yaml"],
        "seeds": [4],
        "rows": {"x": {"model.regularizers": [1]}},
    }
    monkeypatch.setitem(results_jobs.PLAN["sweeps"], "other", other)
    first, second = results_jobs.sweep_jobs("other")
    assert [job.group for job in (first, second)] == ["other", "other"]
    assert second.configs == (ROOT / "configs" / "quickstart.yaml",)
    assert second.settings["model"]["regularizers"] == [1]
    assert first.digest != jobs["dmole"].digest


def test_what_is_finished_is_not_run_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = results_jobs.Job("dmole", "dmole", 0, {"model": {"alpha": 1}})
    job.folder(tmp_path).mkdir(parents=True)
    (job.folder(tmp_path) / results_jobs.MARK).write_text(job.digest)
    assert results_jobs.run_all([job], tmp_path, processes=1) == []
    assert capsys.readouterr().out == "1 of 1 runs are already finished\n"
    assert not (tmp_path / "logs").exists()


def test_a_run_of_other_settings_is_not_taken_for_this_one(tmp_path: Path) -> None:
    job, other = (results_jobs.Job("a", "a", 0, {"model": {"alpha": n}}) for n in (1, 2))
    job.folder(tmp_path).mkdir(parents=True)
    (job.folder(tmp_path) / results_jobs.MARK).write_text(job.digest)
    with pytest.raises(SystemExit, match=r"version_0 was run with other settings"):
        results_jobs.run_all([other], tmp_path, processes=1)


def test_a_folder_left_before_its_first_checkpoint_is_cleared(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "version_0"
    (folder / "checkpoints").mkdir(parents=True)
    results_jobs.clear_unstarted(folder)
    assert not folder.exists()


def test_a_page_without_its_marks_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    monkeypatch.setattr(results, "PAGE", page)
    page.write_text("a\n<!-- x -->\nold\n<!-- end x -->\nb\n")
    results.fill("x", "new")
    assert page.read_text() == "a\n<!-- x -->\nnew\n<!-- end x -->\nb\n"
    for broken in ("a\n<!-- x -->\nold\nb\n", "a\nb\n"):
        page.write_text(broken)
        with pytest.raises(SystemExit, match="lacks the mark <!-- "):
            results.fill("x", "new")
        assert page.read_text() == broken


def test_what_is_kept_of_a_run_is_compared_without_the_run(tmp_path: Path) -> None:
    job, kept = results_jobs.Job("a", "a", 1, {}), tmp_path / "kept"
    folder = job.folder(tmp_path)
    folder.mkdir(parents=True)
    trainer = {"name": "a", "version": 1, "default_root_dir": str(tmp_path)}
    settings = {"seed_everything": 1, "trainer": trainer, "ckpt_path": "somewhere"}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    (folder / "evaluation_matrix.csv").write_text("stage,x\n0,0.0\n1,50.0\n")
    (folder / "metrics.json").write_text("{}")
    (folder / "timing.json").write_text("{}")
    (folder / "report.html").write_text("large")
    (folder / "predictions").mkdir()
    line = {"task": "x", "id": "7", "prompt": "long", "score": 50.0}
    for stage in (0, 1):
        (folder / f"predictions/stage_{stage}.jsonl").write_text(json.dumps(line | {"n": stage}))
    assert not is_kept(job, kept)
    keep(job, tmp_path, kept)
    assert is_kept(job, kept)
    assert not is_kept(results_jobs.Job("a", "a", 1, {"model": {}}), kept)
    run = load_run(kept_folder(job, kept))
    assert (run.method, run.seed, run.matrix.tolist()) == ("a", 1, [[0.0], [50.0]])
    assert run.config == {
        "seed_everything": 1,
        "trainer": {"name": "a", "version": None, "default_root_dir": "runs"},
        "ckpt_path": None,
    }
    assert not (kept_folder(job, kept) / "report.html").exists()
    assert predicted_stages(kept_folder(job, kept)) == [1]
    assert read_stage(kept_folder(job, kept), 1) == {"x": [{"id": "7", "score": 50.0}]}


def test_the_tables_of_kept_runs_have_the_paired_differences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = {"seeds": [0], "page": "page.md", "rows": {"seq_ft": {"method": "seq_ft"}}}
    monkeypatch.setitem(results_jobs.PLAN["sweeps"], "other", other)
    jobs, kept, page = results.final_jobs(["seq_ft", "dmole"], [0]), tmp_path / "kept", "page.md"
    for job, score in zip(jobs, (20.0, 60.0), strict=True):
        folder = job.folder(tmp_path)
        (folder / "predictions").mkdir(parents=True)
        settings = {"seed_everything": 0, "trainer": {"name": job.name}}
        (folder / "config.yaml").write_text(yaml.safe_dump(settings))
        (folder / "evaluation_matrix.csv").write_text(f"stage,x\n0,0.0\n1,{score}\n")
        (folder / "metrics.json").write_text(json.dumps({"Last": score}))
        (folder / "timing.json").write_text("{}")
        line = {"task": "x", "id": "7", "prompt": "long", "score": score}
        (folder / "predictions/stage_1.jsonl").write_text(json.dumps(line))
        keep(job, tmp_path, kept)
    monkeypatch.setattr(results, "is_kept", lambda job: is_kept(job, kept))
    monkeypatch.setattr(results, "kept_folder", lambda job: kept_folder(job, kept))
    monkeypatch.setattr(results, "OUTPUT", tmp_path / "out")
    monkeypatch.setattr(results, "PAGE", tmp_path / page)
    monkeypatch.setattr(
        sys.modules[results.compare.__module__], "method_figures", lambda *given: {}
    )
    marks = "".join(f"<!-- {part} -->\n<!-- end {part} -->\n" for part in ("table", "missing"))
    (tmp_path / page).write_text(marks)
    results.write_tables()
    text = (tmp_path / page).read_text(encoding="utf-8")
    assert "### Paired differences to dmole\n" in text
    assert "| seq_ft | 1 | 0 of 1 | -40.00 | [-40.00, -40.00] | worse |" in text
    assert str(tmp_path) not in text
    assert f"\nCode: commit {current_commit()} (2 runs).\n" in text
    (kept_folder(jobs[1], kept) / COMMIT).unlink()
    folders = [kept_folder(job, kept) for job in jobs]
    assert commits(folders).endswith(" (1 run), commit not recorded (1 run).")
    monkeypatch.setattr(results, "ROOT", tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / page).write_text("<!-- other -->\n<!-- end other -->\n")
    results.write_sweep("other", tmp_path, 1)
    text = (tmp_path / "docs" / page).read_text(encoding="utf-8")
    assert "| seq_ft | 1 | 0 of 1 | -40.00 | [-40.00, -40.00] | worse |" in text
    shutil.rmtree(kept_folder(jobs[1], kept).parent)
    results.write_tables()  # without the reference
    assert "Paired" not in (tmp_path / page).read_text(encoding="utf-8")


def test_methods_without_all_runs_are_named() -> None:
    seeds = results_jobs.PLAN["seeds"]
    jobs = [results_jobs.Job(row, row, seed, {}) for row in ROWS for seed in seeds]
    assert results.missing_rows(jobs) == "Every method was run with every seed."
    fewer = [job for job in jobs if (job.name, job.seed) != ("dmole", seeds[-1])]
    assert results.missing_rows(fewer) == "Not yet run with every seed: `dmole`."
