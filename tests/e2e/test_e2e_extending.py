"""A finished run learns one more task in a folder of its own; the old folder keeps every byte."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cuts import CutAt, CutError
from run_digests import run_digests
from small_runs import NO_FIGURES, Recipe, embedded, one_answer, small_task

from dmole.allocation import UniformAllocator
from dmole.cli.main import main
from dmole.data import Task
from dmole.metrics import read_matrix
from dmole.routing import AutoencoderRouter, SharedRouter
from dmole.run.checkpoint_file import read_checkpoint, save_checkpoint
from dmole.run.extending import RunPlan, new_tasks
from dmole.storage.predictions import read_stage
from dmole.streams import ReplayStream, SequentialStream
from experiments.extended_content import compare_extended

OLD = ("paint", "count")
ALL = (*OLD, "read")
READ = [f"train/read-train-0-{i}" for i in range(8)] + [f"test/read-test-0-{i}" for i in range(4)]


def every_byte(run: Path) -> dict[str, str]:
    """Return the digest of every file of a run folder, checkpoints and events included."""
    files = (path for path in run.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def child(plain_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run that extends the plain run by one task."""
    before = every_byte(plain_run)
    with embedded() as seen:
        run = Recipe(ALL).build(tmp_path_factory.mktemp("child")).fit(plain_run)
    assert every_byte(plain_run) == before
    assert sorted(seen) == sorted(f"read/{key}" for key in READ)  # the others are known
    return run


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run that had all tasks from its start."""
    return Recipe(ALL).build(tmp_path_factory.mktemp("planned")).fit()


def test_an_extended_run_equals_a_planned_one_and_names_its_parent(
    child: Path, plain_run: Path, planned: Path
) -> None:
    found = compare_extended(planned, child)
    assert found.all
    assert found.empty == 3
    digest = hashlib.sha256((plain_run / "digests.json").read_bytes()).hexdigest()
    parent = json.loads((child / "metrics.json").read_text())["parent"]
    assert parent == {"run": "dmole/version_0", "digest": digest, "stage": 2}
    assert "parent" not in json.loads((planned / "metrics.json").read_text())


def test_an_extended_run_carries_the_results_of_its_parent(child: Path, plain_run: Path) -> None:
    (ours, _), (theirs, _) = (read_matrix(r / "evaluation_matrix.csv") for r in (child, plain_run))
    np.testing.assert_array_equal(ours[:3, :2], theirs)
    assert np.isnan(ours[:3, 2]).all()
    assert np.isfinite(ours[3]).all()
    expert = Path("experts") / "paint" / "adapter_model.safetensors"
    assert (child / expert).stat().st_ino == (plain_run / expert).stat().st_ino
    for file in plain_run.glob("predictions/*.jsonl"):
        copied = child / file.relative_to(plain_run)
        assert copied.read_bytes() == file.read_bytes()
        assert copied.stat().st_ino != file.stat().st_ino
    assert "read" not in read_stage(child, 1)
    metrics = json.loads((child / "metrics.json").read_text())
    assert metrics["AVG"] is None
    assert metrics["BWT"] is not None


def test_the_same_tasks_resume_the_extended_run_and_change_nothing(
    child: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(child, tmp_path / "dmole" / "version_1"))
    assert Recipe(ALL).build(tmp_path).fit(Path("auto")) == copy
    assert run_digests(copy) == run_digests(child)


@pytest.mark.parametrize("stage_phase", ["train", pytest.param("evaluate", marks=pytest.mark.slow)])
def test_an_extension_that_was_cut_is_resumed_by_its_own_folder(
    child: Path, plain_run: Path, tmp_path: Path, stage_phase: str
) -> None:
    cut = Recipe(ALL, callbacks=[CutAt(3, stage_phase)]).build(tmp_path)
    with pytest.raises(CutError):
        cut.fit(plain_run / "checkpoints" / "last.ckpt")
    torch.manual_seed(99)
    resumed = Recipe(ALL).build(tmp_path).fit(Path("last"))
    assert resumed == cut.trainer.run_dir
    assert run_digests(resumed) == run_digests(child)


@pytest.mark.slow
def test_an_extended_run_is_extended_again(child: Path, tmp_path: Path) -> None:
    before = every_byte(child)
    run = Recipe((*ALL, "find")).build(tmp_path).fit(child)
    assert every_byte(child) == before
    matrix, tasks = read_matrix(run / "evaluation_matrix.csv")
    assert tasks == [*ALL, "find"]
    assert np.isnan(matrix).tolist() == [[False, False, True, True]] * 3 + [
        [False, False, False, True],
        [False] * 4,
    ]
    assert json.loads((run / "metrics.json").read_text())["parent"]["stage"] == 3


@pytest.mark.slow
def test_a_file_of_the_parent_that_was_changed_is_written_again(
    plain_run: Path, child: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parent = Path(shutil.copytree(plain_run, tmp_path / "dmole" / "version_0"))
    for name in ("experts/paint/adapter_model.safetensors", "predictions/stage_1.jsonl"):
        (parent / name).write_bytes(b"damaged")
    run = Recipe(ALL).build(tmp_path).fit(parent)
    assert "adapter_model.safetensors is not the file that its run has written" in caplog.text
    assert run_digests(run) == run_digests(child)


def renamed(name: str, other: str) -> Task:
    task = small_task(name)
    return Task(other, task.train, task.test, max_new_tokens=3)


def eval_only(name: str) -> Task:
    return Task(name, test=f"synthetic://{name}/test?size=4", max_new_tokens=3, eval_only=True)


REFUSED: list[tuple[list[str | Task], dict[str, Any], str]] = [
    (
        ["paint", renamed("count", "tally"), "read"],
        {},
        "task 'count' is missing as number 2, where",
    ),
    (["count", "paint", "read"], {}, "task 'paint' was number 1 and is number 2 now"),
    (["read", "paint", "count"], {}, "task 'paint' was number 1 and is number 2 now"),
    (["count"], {}, "task 'paint' is missing as number 1, where 'count' is now"),
    (["paint"], {}, "task 'count' is missing as number 2; old tasks stay"),
    (["paint", "read", eval_only("count")], {}, "task 'count' has become one that is only eval"),
    ([*OLD, eval_only("read")], {}, "was made without read, which is only evaluated"),
    ([small_task("paint", 9), "count", "read"], {}, "made with another data of paint"),
    ([small_task("paint", epochs=2), *ALL[1:]], {}, "another epochs of task paint, which can no"),
    (list(ALL), {"seed": 1}, "another model setting 'seed'"),
    (list(ALL), {"trainer": {"precision": "bf16-mixed"}}, "another setting 'precision'"),
    (list(ALL), {"allocator": UniformAllocator}, "another allocator setting"),
    (list(ALL), {"router": SharedRouter}, "another router"),
]


@pytest.mark.parametrize(("tasks", "change", "message"), REFUSED, ids=[r[2] for r in REFUSED])
def test_a_run_that_does_not_extend_is_refused_by_name_and_nothing_is_made(
    plain_run: Path, tmp_path: Path, tasks: list[str | Task], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        Recipe(tasks, **change).build(tmp_path).fit(plain_run)
    assert "\n" not in str(caught.value)
    assert str(plain_run) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_another_base_model_is_refused(plain_run: Path, tmp_path: Path) -> None:
    other = Recipe(ALL).build(tmp_path)
    with torch.no_grad():
        next(other.module.backbone.model.parameters()).add_(1.0)
    with pytest.raises(ValueError, match="was made with another base model"):
        other.fit(plain_run)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_not_finished_is_to_be_resumed_first(plain_run: Path, tmp_path: Path) -> None:
    parent = Path(shutil.copytree(plain_run, tmp_path / "parent" / "version_0"))
    file = parent / "checkpoints" / "last.ckpt"
    content = read_checkpoint(file)
    content["done"].remove([2, "evaluate"])
    save_checkpoint(content, file)
    text = rf"phase evaluate of stage 2, count remains; resume it first: .* --ckpt_path {parent}"
    with pytest.raises(ValueError, match=text):
        Recipe(ALL).build(tmp_path / "runs").fit(parent)
    assert not (tmp_path / "runs").exists()


def test_one_of_two_extensions_gets_the_folder(plain_run: Path, child: Path) -> None:
    before = every_byte(child)
    second = Recipe(ALL, trainer={"version": 0}).build(child.parents[1])
    with pytest.raises(ValueError, match=r"version_0 exists; choose another trainer\.version"):
        second.fit(plain_run)
    assert every_byte(child) == before


def test_a_disk_that_is_full_while_files_are_copied_leaves_no_folder(
    plain_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dmole.run.child.shutil.copyfileobj", fail)
    with pytest.raises(OSError, match="No space left") as caught:
        Recipe(ALL).build(tmp_path).fit(plain_run)
    assert caught.value.filename is not None
    assert list((tmp_path / "dmole").iterdir()) == []


# -- empty cells -------------------------------------------------------------------------------


def test_rows_of_old_stages_are_filled_if_asked_and_then_the_whole_matrix_is_that_of_a_plan(
    child: Path, planned: Path, tmp_path: Path
) -> None:
    """The rows of a finished extension are filled by a second command."""
    run = Path(shutil.copytree(child, tmp_path / "dmole" / "version_0"))
    filling = Recipe(ALL, trainer={"fill_rows": True})
    assert filling.build(tmp_path).fit(run) == run
    ours, theirs = run_digests(run), run_digests(planned)
    assert {name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)} == {
        "metrics.json"
    }
    metrics, expected = (json.loads((r / "metrics.json").read_text()) for r in (run, planned))
    assert metrics.pop("parent")["stage"] == 2
    assert metrics == expected
    assert Recipe(ALL).build(tmp_path).fit(run) == run
    assert run_digests(run) == ours


@pytest.mark.slow
def test_a_row_whose_experts_were_trained_further_stays_empty_which_one_line_says(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shared: dict[str, Any] = {"allocator": UniformAllocator, "router": SharedRouter}
    shared["stream"] = SequentialStream("shared")
    parent = Recipe(OLD, **shared).build(tmp_path / "parent").fit()
    filling = Recipe(ALL, **shared, trainer={"fill_rows": True}).build(tmp_path / "runs")
    run = filling.fit(parent)
    matrix, _ = read_matrix(run / "evaluation_matrix.csv")
    assert np.isnan(matrix[:, 2]).tolist() == [False, True, False, False]
    (line,) = [r.getMessage() for r in caplog.records if "empty cells" in r.getMessage()]
    assert line == "rows of stages 1 keep empty cells: their experts trained further"
    planned = Recipe(ALL, **shared).build(tmp_path / "planned").fit()
    theirs, _ = read_matrix(planned / "evaluation_matrix.csv")
    np.testing.assert_array_equal(matrix[[0, 2, 3]], theirs[[0, 2, 3]])


@pytest.mark.slow
def test_a_row_whose_routing_a_later_setting_changed_stays_empty_which_one_line_says(
    plain_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    strict = partial(AutoencoderRouter, threshold_scale=0.0)
    accepting = {"accept_changes": True, "fill_rows": True}
    run = Recipe(ALL, router=strict, trainer=accepting).build(tmp_path).fit(plain_run)
    matrix, _ = read_matrix(run / "evaluation_matrix.csv")
    assert np.isnan(matrix[:, 2]).tolist() == [True, True, True, False]
    (line,) = [r.getMessage() for r in caplog.records if "empty cells" in r.getMessage()]
    reason = "router setting 'threshold_scale' was changed from stage 3 on"
    assert line == f"rows of stages 0, 1, 2 keep empty cells: {reason}"
    caplog.clear()
    Recipe(ALL, router=strict, trainer={"fill_rows": True}).build(tmp_path).fit(run)
    assert line in [record.getMessage() for record in caplog.records]  # nothing changes here


# -- old data that are gone ------------------------------------------------------------------


@pytest.fixture
def filed(tmp_path: Path) -> Callable[..., Task]:
    """Return a function that makes a task with a training file and a test file."""

    def task(name: str, answer: str) -> Task:
        made = one_answer(tmp_path, name, answer)
        test = tmp_path / f"{name}_test.json"
        shutil.copy(str(made.train), test)
        return Task(name, str(made.train), str(test), max_new_tokens=2)

    return task


@pytest.mark.slow
def test_old_files_that_are_gone_do_not_matter_but_for_the_cells_they_would_fill(
    filed: Callable[..., Task], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tasks = [filed("first", "red"), filed("second", "blue"), filed("third", "green")]
    parent = Recipe(tasks[:2]).build(tmp_path / "parent").fit()
    whole = Recipe(tasks).build(tmp_path / "whole").fit(parent)
    for gone in (tasks[0].train, tasks[1].train, tasks[1].test):
        Path(str(gone)).unlink()
    with caplog.at_level("WARNING", logger="dmole"):
        run = Recipe(tasks).build(tmp_path / "runs").fit(parent)
    (line,) = [r.getMessage() for r in caplog.records if "not evaluated" in r.getMessage()]
    assert re.match(r"task 'second' is not evaluated, its cells stay empty: .*second_test", line)
    (line,) = [r.getMessage() for r in caplog.records if "evaluated without" in r.getMessage()]
    assert line == "evaluated without: second; their test files are gone"
    matrix, _ = read_matrix(run / "evaluation_matrix.csv")
    assert np.isnan(matrix).tolist() == [[False, False, True]] * 3 + [[False, True, False]]
    found = compare_extended(whole, run)
    assert (found.experts, found.routers) == (True, True)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["Last"] is None
    assert metrics["per_task"]["first"]["Last"] is not None
    assert (
        metrics["fingerprints"] == json.loads((whole / "metrics.json").read_text())["fingerprints"]
    )
    before = run_digests(run)
    assert Recipe(tasks).build(tmp_path / "runs").fit(run) == run
    assert run_digests(run) == before


def test_a_method_that_replays_names_the_file_that_is_gone(
    filed: Callable[..., Task], tmp_path: Path
) -> None:
    tasks = [filed("first", "red"), filed("second", "blue")]
    replay: dict[str, Any] = {"allocator": UniformAllocator, "router": SharedRouter}
    replay["stream"] = ReplayStream(buffer_size=4)
    parent = Recipe(tasks[:1], **replay).build(tmp_path / "parent").fit()
    Path(str(tasks[0].train)).unlink()
    text = r"stage second .* earlier tasks too.*: task 'first': .*first\.json does not exist"
    with pytest.raises(ValueError, match=text):
        Recipe(tasks, **replay).build(tmp_path / "runs").fit(parent)
    assert not (tmp_path / "runs").exists()


def test_files_of_a_new_task_have_to_be_there(
    filed: Callable[..., Task], plain_run: Path, tmp_path: Path
) -> None:
    task = filed("third", "green")
    Path(str(task.test)).unlink()
    with pytest.raises(FileNotFoundError, match=r"third_test\.json does not exist"):
        Recipe([*OLD, task]).build(tmp_path / "runs").fit(plain_run)
    assert not (tmp_path / "runs").exists()


# -- what extends ----------------------------------------------------------------------------


def plan(*tasks: str, scored: str = "", joint: bool = False) -> RunPlan:
    stages = [("all", "all", *tasks)] if joint else [(task, task, task) for task in tasks]
    return RunPlan(tuple(stages), (*tasks, *scored.split()), frozenset(scored.split()))


def test_new_tasks_follow_the_old_ones_and_precede_those_that_are_only_scored() -> None:
    file = Path("last.ckpt")
    assert new_tasks(plan("a"), plan("a"), file) == ()
    assert new_tasks(plan("a"), plan("a", "b", "c"), file) == ("b", "c")
    assert new_tasks(plan("a", scored="x"), plan("a", "b", scored="x y"), file) == ("b",)
    for before, now, message in [
        (plan("a", scored="x"), plan("a", "b", "x"), "task 'x' has become one that is learned"),
        (plan("a", scored="x y"), plan("a", "b", scored="y x"), "'x' was number 1 and is number 2"),
        (plan("a", joint=True), plan("a", "b", joint=True), "does not learn a new task in a stage"),
    ]:
        with pytest.raises(ValueError, match=message):
            new_tasks(before, now, file)


# -- the short form --------------------------------------------------------------------------


@pytest.mark.slow
def test_a_task_is_added_to_a_run_by_one_command(
    quick_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(quick_run, tmp_path / "small" / "version_0"))
    before = every_byte(run)
    data = [f"--{split}=synthetic://read/{split}?size=4" for split in ("train", "test")]
    words = ["add", str(run), "--name", "read", *data, "--max_new_tokens", "2"]
    for wrong, message in [
        (["--metric", "bleurt"], "task 'read': unknown metric 'bleurt'"),
        (["--train", "nowhere.json"], "data file nowhere.json does not exist"),
        (["--name", "paint"], "has a task 'paint' already"),
        (["--model.alpha", "3"], "another model setting 'alpha'"),
    ]:
        assert main([*words, *wrong, *NO_FIGURES]) == 1
        *_, line = capsys.readouterr().err.splitlines()
        assert message in line
        assert [path.name for path in run.parent.iterdir()] == ["version_0"]
    assert main([*words, *NO_FIGURES]) == 0
    child, config = run.with_name("version_1"), run.with_name("version_1.yaml")
    assert capsys.readouterr().out.splitlines() == [f"config: {config}", f"results: {child}"]
    assert every_byte(run) == before
    _, tasks = read_matrix(child / "evaluation_matrix.csv")
    assert tasks == ["paint", "count", "read"]
    digests = run_digests(child)
    words = ["fit", "--config", str(config), "--ckpt_path", str(child), *NO_FIGURES]
    assert main(words) == 0  # the new run resumes with that config
    assert run_digests(child) == digests


def test_an_added_config_is_refused_like_one_of_fit(
    quick_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(quick_run, tmp_path / "small" / "version_0"))
    config = run / "config.yaml"
    text = config.read_text()
    data = [f"--{split}=synthetic://read/{split}?size=4" for split in ("train", "test")]
    for change, message in [
        (("dmole.routing.AutoencoderRouter", "os.system"), "os.system is not among the classes"),
        (("trust_remote_code: false", "trust_remote_code: true"), "runs code of the base model"),
    ]:
        assert change[0] in text
        config.write_text(text.replace(*change))
        assert main(["add", str(run), "--name", "read", *data]) == 1
        *_, line = capsys.readouterr().err.splitlines()
        assert message in line
        assert [path.name for path in run.parent.iterdir()] == ["version_0"]
