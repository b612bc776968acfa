"""A process that is killed while it extends a run leaves that run whole and its own resumable."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import pkgutil
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from run_digests import run_digests
from small_runs import Recipe
from test_e2e_extending import ALL, every_byte
from two_ranks import become_rank, free_port

from experiments.extended_content import compare_extended

BEFORE: dict[str, tuple[str, int]] = {
    "the folder is made": ("dmole.run.child._carry", 1),
    "some files are copied": ("dmole.run.child._carry", 6),
    "all files are copied": ("dmole.run.child.save_checkpoint", 1),
    "the checkpoint has a temporary file": ("torch.save", 1),
}
"""Calls before which the new folder has no checkpoint: the function, and which call of it."""

AFTER: dict[str, tuple[str, int]] = {
    "the folder is complete": ("dmole.run.session.RunLock.acquire", 1),
    "a row is filled": ("dmole.run.filling.RowFiller._fill", 2),
    "an expert is placed": ("dmole.callbacks.Curriculum.on_train_start", 1),
    "a step is saved": ("dmole.callbacks.stage_checkpoint.StageCheckpoint.on_train_batch_end", 2),
    "training is done": ("dmole.trainer.save_sequence", 4),
    "the router is fitted": ("dmole.trainer.save_sequence", 5),
    "answers are given": ("dmole.callbacks.EvaluationMatrix.add_row", 1),
    "the last phase is saved": ("dmole.callbacks.EvaluationMatrix.on_sequence_end", 1),
}
"""Calls before which the new folder has a checkpoint."""

FILLING = Recipe(ALL, trainer={"checkpoint_every_n_steps": 1, "fill_rows": True})


def extend_and_die(place: str, count: int, parent: Path, root: Path) -> None:
    """Extend a run; a call of a function kills this process."""
    owner, _, name = place.rpartition(".")
    holder, calls = pkgutil.resolve_name(owner), itertools.count(1)
    original: Callable[..., Any] = getattr(holder, name)

    def deadly(*args: Any, **options: Any) -> Any:
        if next(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **options)

    setattr(holder, name, deadly)
    FILLING.build(root).fit(parent)


@pytest.fixture(scope="module")
def filled(plain_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """Digests of the extended run that nothing disturbs."""
    return run_digests(FILLING.build(tmp_path_factory.mktemp("filled")).fit(plain_run))


def killed(place: tuple[str, int], parent: Path, root: Path) -> Path:
    """Return the folder that a killed process leaves."""
    before = every_byte(parent)
    context = multiprocessing.get_context("fork")  # nothing is imported again
    process = context.Process(target=extend_and_die, args=(*place, parent, root))
    process.start()
    process.join(timeout=300)
    assert process.exitcode == -signal.SIGKILL
    assert every_byte(parent) == before
    (child,) = (root / "dmole").iterdir()
    return child


def instants(places: Mapping[str, Any], quick: str) -> list[Any]:
    return [pytest.param(n, marks=() if n == quick else pytest.mark.slow) for n in places]


@pytest.mark.parametrize("name", instants(AFTER, "a step is saved"))
def test_after_a_kill_the_new_run_resumes_to_the_same_bytes(
    plain_run: Path, filled: Mapping[str, str], tmp_path: Path, name: str
) -> None:
    child = killed(AFTER[name], plain_run, tmp_path)
    assert FILLING.build(tmp_path).fit(child) == child
    assert run_digests(child) == filled


@pytest.mark.parametrize("name", instants(BEFORE, "some files are copied"))
def test_a_folder_without_a_checkpoint_is_refused_and_the_run_is_extended_again(
    plain_run: Path, filled: Mapping[str, str], tmp_path: Path, name: str
) -> None:
    child = killed(BEFORE[name], plain_run, tmp_path)
    left = every_byte(child)
    with pytest.raises(ValueError, match=r"^there is no checkpoint .*last\.ckpt$"):
        FILLING.build(tmp_path).fit(child)
    if name == "all files are copied":  # the others need no run to be sure
        again = FILLING.build(tmp_path).fit(plain_run)
        assert again.name == "version_1"
        assert run_digests(again) == filled
    assert every_byte(child) == left


# -- two processes ---------------------------------------------------------------------------

TWO = replace(Recipe(ALL), devices=2, trainer={"strategy": "ddp"}, data={"batch_size": 2})


def on_rank(rank: int, port: str, root: Path, folders: Any) -> None:
    """Plan a run, and extend another one, as one of two processes."""
    become_rank(rank, port)
    planned = TWO.build(root / "planned").fit()
    parent = replace(TWO, tasks=ALL[:2]).build(root / "parent").fit()
    before = every_byte(parent)
    child = TWO.build(root / "child").fit(parent)
    folders.put((planned, child, every_byte(parent) == before))


@pytest.mark.slow
def test_two_processes_extend_a_run_in_one_folder_to_that_of_a_plan(tmp_path: Path) -> None:
    context, port = multiprocessing.get_context("fork"), free_port()
    folders = context.Queue()
    ranks = [context.Process(target=on_rank, args=(r, port, tmp_path, folders)) for r in (0, 1)]
    for process in ranks:
        process.start()
    found = [folders.get(timeout=400) for _ in ranks]
    for process in ranks:
        process.join(timeout=60)
    assert found[0] == found[1]
    planned, child, same = found[0]
    assert same
    assert compare_extended(planned, child).all
    assert [path.name for path in child.parent.iterdir()] == ["version_0"]
