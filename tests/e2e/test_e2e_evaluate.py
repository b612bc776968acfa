"""A finished run is evaluated on any tasks, and an evaluation that fails leaves nothing behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from small_runs import Recipe

from dmole.allocation import UniformAllocator
from dmole.callbacks import ContinualCallback
from dmole.data import Task
from dmole.metrics import read_matrix
from dmole.module import ContinualModule
from dmole.routing import SharedRouter
from dmole.run.run_folder import RunLock, finished_folder
from dmole.run.state import SequenceState
from dmole.storage.predictions import read_stage
from dmole.streams.stream import SequentialStream


def evaluate(run: Path, output: Path, recipe: Recipe | None = None) -> Path:
    built = (recipe or Recipe()).build(output.parent / "none")
    built.trainer.evaluate(built.module, built.data, run=run, output=output)
    return output


def cells(folder: Path) -> dict[tuple[int, str], float]:
    """Return the matrix of a folder by stage and task."""
    matrix, names = read_matrix(folder / "evaluation_matrix.csv")
    return {
        (s, name): float(row[i]) for s, row in enumerate(matrix) for i, name in enumerate(names)
    }


def oracle(folder: Path) -> dict[str, list[float]]:
    matrix, names = read_matrix(folder / "oracle_matrix.csv")
    return dict(zip(names, matrix.T.tolist(), strict=True))


@pytest.mark.parametrize(
    "tasks", [["count"], ["count", "paint"], ["find", "count"]], ids=["subset", "order", "unseen"]
)
def test_other_tasks_than_those_of_the_run_get_the_experts_of_the_run(
    plain_run: Path, tmp_path: Path, tasks: Sequence[str]
) -> None:
    output = evaluate(plain_run, tmp_path / "again", Recipe(tasks=tasks))
    ours, theirs = cells(output), cells(plain_run)
    assert ours.keys() == {(stage, task) for stage in range(3) for task in tasks}
    assert {key: ours[key] for key in ours if key in theirs} == {
        key: theirs[key] for key in theirs if key[1] in tasks
    }
    seen = {"paint": [1, 2], "count": [2], "find": []}
    for task, column in oracle(output).items():
        assert np.flatnonzero(~np.isnan(column)).tolist() == seen[task]
    for task in set(tasks) - {"find"}:
        assert read_stage(output, 2)[task] == read_stage(plain_run, 2)[task]
    figures = json.loads((output / "metrics.json").read_text())
    assert list(figures["per_task"]) == list(tasks)


def test_training_files_are_not_read(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "which color ?"}, {"from": "gpt", "value": "red"}]
    for split in ("train", "test"):
        items = [{"id": f"{split}{i}", "conversations": turns} for i in range(4)]
        (tmp_path / f"{split}.json").write_text(json.dumps(items))
    recipe = Recipe(
        tasks=[Task("own", train="train.json", test="test.json", max_new_tokens=2)],
        allocator=UniformAllocator,
        data={"data_root": str(tmp_path)},
    )
    run = recipe.build(tmp_path / "runs").fit()
    (tmp_path / "train.json").unlink()
    output = evaluate(run, tmp_path / "again", recipe)
    assert cells(output) == cells(run)
    ours, theirs = (
        json.loads((folder / "metrics.json").read_text())["fingerprints"]["data"]
        for folder in (output, run)
    )
    assert ours == theirs  # that of the training file is the run's


@pytest.fixture
def copied_run(plain_run: Path, tmp_path: Path) -> Path:
    """A finished run that a test may spoil."""
    return Path(shutil.copytree(plain_run, tmp_path / "runs" / "dmole" / "version_0"))


def test_an_evaluation_of_a_damaged_run_leaves_no_folder(copied_run: Path) -> None:
    before = sorted(copied_run.rglob("*"))
    (copied_run / "experts" / "experts.json").write_text('["paint"]')
    with pytest.raises(ValueError, match=r"experts\.json does not name the expert 'count'"):
        evaluate(copied_run, copied_run / "again")
    assert sorted(copied_run.rglob("*")) == before


class Fails(ContinualCallback):
    def on_evaluation_end(self, *_: object) -> None:
        raise ZeroDivisionError


def test_an_evaluation_that_fails_in_the_middle_leaves_no_folder(
    plain_run: Path, tmp_path: Path
) -> None:
    with pytest.raises(ZeroDivisionError):
        evaluate(plain_run, tmp_path / "again", Recipe(callbacks=[Fails()]))
    assert [path.name for path in tmp_path.iterdir() if "again" in path.name] == []


def without_digests(run: Path) -> None:
    (run / "digests.json").unlink()


def test_a_run_without_digests_is_evaluated_on_its_tasks_and_refuses_others(
    copied_run: Path, plain_run: Path, tmp_path: Path
) -> None:
    without_digests(copied_run)
    assert cells(evaluate(copied_run, tmp_path / "again")) == cells(plain_run)
    with pytest.raises(ValueError, match=r"the expert 'paint' is in experts of .* alone: a run of"):
        evaluate(copied_run, tmp_path / "other", Recipe(tasks=["count"]))
    assert not (tmp_path / "other").exists()


class Stops(ContinualCallback):
    def on_stage_start(self, state: SequenceState, module: ContinualModule) -> None:
        if state.stage.index == 2:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    "change",
    [lambda run: None, pytest.param(without_digests, marks=pytest.mark.slow)],
    ids=["digests", "none"],
)
def test_a_run_that_has_not_finished_is_evaluated_up_to_its_last_trained_stage(
    tmp_path: Path, plain_run: Path, change: Callable[[Path], object]
) -> None:
    built = Recipe(callbacks=[Stops()]).build(tmp_path / "runs")
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        built.fit()
    change(built.trainer.run_dir)
    ours, theirs = cells(evaluate(built.trainer.run_dir, tmp_path / "again")), cells(plain_run)
    assert ours == {key: score for key, score in theirs.items() if key[0] < 2}


@pytest.mark.slow
def test_an_expert_that_later_stages_will_train_is_evaluated_as_it_is(tmp_path: Path) -> None:
    parts = {"allocator": UniformAllocator, "router": SharedRouter}
    recipe = Recipe(stream=SequentialStream("shared"), callbacks=[Stops()], **parts)
    built = recipe.build(tmp_path / "runs")
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        built.fit()
    output = evaluate(built.trainer.run_dir, tmp_path / "again", recipe)
    assert cells(output) == cells(built.trainer.run_dir)


# -- the folder of an evaluation -----------------------------------------------------------


def test_a_folder_appears_when_it_is_finished_and_replaces_nothing(tmp_path: Path) -> None:
    output = tmp_path / "deep" / "out"
    (tmp_path / "deep" / ".out.unfinished" / "figures").mkdir(parents=True)  # of a killed process
    with finished_folder(output, writes=True) as folder:
        assert not output.exists()
        assert [path.name for path in folder.iterdir()] == ["checkpoints"]
        (folder / "a").write_text("a")
        (folder / "checkpoints" / "b").write_text("b")
    assert [path.name for path in output.parent.iterdir()] == ["out"]
    assert [path.name for path in output.iterdir()] == ["a"]
    with pytest.raises(ValueError, match="out exists; name another output"):
        finished_folder(output, writes=True).__enter__()


@pytest.mark.parametrize("link", ["", "checkpoints", "figures"])
def test_an_unfinished_folder_that_is_a_link_empties_no_other_folder(
    link: str, tmp_path: Path
) -> None:
    home, folder = tmp_path / "home", tmp_path / "run" / ".out.unfinished"
    (home / "deep").mkdir(parents=True)
    (home / "deep" / "a").write_text("a")
    (folder if link else folder.parent).mkdir(parents=True)
    (folder / link).symlink_to(home)
    if link == "figures":
        with finished_folder(tmp_path / "run" / "out", writes=True):
            assert not (folder / link).exists()
    else:
        with pytest.raises(ValueError, match="is a link, not a folder of an evaluation"):
            finished_folder(tmp_path / "run" / "out", writes=True).__enter__()
    assert (home / "deep" / "a").read_text() == "a"


def test_two_processes_do_not_make_the_same_folder(tmp_path: Path) -> None:
    lock = RunLock(tmp_path / ".out.unfinished")
    lock.acquire()
    with pytest.raises(ValueError, match=r"unfinished is being written by process"):
        finished_folder(tmp_path / "out", writes=True).__enter__()
    lock.release()
    with finished_folder(tmp_path / "out", writes=False) as folder:
        assert folder == tmp_path / ".out.unfinished"
    assert not (tmp_path / "out").exists()
