"""Interrupted training resumes at its last saved step and ends bit-equal."""

from __future__ import annotations

import os
import resource
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cuts import CutAfter, CutError
from run_digests import logged_steps, run_digests
from small_runs import NO_FIGURES, FitWords, Recipe

from dmole.allocation import UniformAllocator
from dmole.callbacks import ContinualCallback
from dmole.cli.main import main
from dmole.data import Task
from dmole.routing import SharedRouter
from dmole.run import Interrupted
from dmole.run.checkpoint_file import read_checkpoint, save_checkpoint
from dmole.streams.stream import SequentialStream
from experiments.odd_values import replaced

TASKS = [
    Task(
        name,
        train=f"synthetic://{name}/train?size=3",  # the last of its two batches is smaller
        test=f"synthetic://{name}/test?size=4",
        epochs=2,
        max_new_tokens=3,
    )
    for name in ("paint", "count")
]


Make = Callable[..., Recipe]
SLOW = pytest.mark.slow


class SignalAfter(CutAfter):
    """Asks the run to end at a step."""

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


class Steps(ContinualCallback):
    """Remembers the loss of each step."""

    def __init__(self) -> None:
        self.losses: dict[int, float] = {}

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *args: Any) -> None:
        self.losses[trainer.global_step] = float(outputs["loss"])


@pytest.fixture(scope="module")
def make() -> Make:
    """Return a function that describes the run; its dropout makes random draws matter."""

    def make(*callbacks: ContinualCallback, workers: int = 0, **parts: Any) -> Recipe:
        trainer = {"checkpoint_every_n_steps": 1} | parts.pop("trainer", {})
        return Recipe(
            tasks=TASKS,
            callbacks=callbacks,
            curriculum="online",
            data={"batch_size": 2, "num_workers": workers},
            model={"dropout": 0.2} | parts.pop("model", {}),
            trainer=trainer,
            **parts,
        )

    return make


@pytest.fixture(scope="module")
def whole(make: Make, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, float]]:
    """Return the run that nothing cut short, and its loss at each step."""
    steps = Steps()
    return make(steps).build(tmp_path_factory.mktemp("whole")).fit(), steps.losses


@pytest.fixture(scope="module")
def cut_after(make: Make, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, Path], Path]:
    """Return a function that fills a folder with a run cut after a step; each cut is made once."""
    made: dict[int, Path] = {}

    def copy(step: int, root: Path) -> Path:
        if step not in made:
            made[step] = tmp_path_factory.mktemp(f"cut_{step}")
            with pytest.raises(CutError):
                make(CutAfter(step)).build(made[step]).fit()
        shutil.copytree(made[step], root, dirs_exist_ok=True)
        return root / "dmole" / "version_0"

    return copy


# the end of a stage; also within a stage, and within and at the end of an epoch, if slow
@pytest.mark.parametrize("step", [4, *(pytest.param(s, marks=SLOW) for s in (1, 2, 3, 6, 8))])
def test_a_stage_cut_at_any_step_resumes_within_the_epoch(
    make: Make,
    cut_after: Callable[[int, Path], Path],
    whole: tuple[Path, dict[int, float]],
    tmp_path: Path,
    step: int,
) -> None:
    run, losses = whole
    cut = cut_after(step, tmp_path)
    torch.manual_seed(99)  # a new process has drawn other numbers
    steps = Steps()
    resumed = make(steps).build(tmp_path).fit("auto")
    assert resumed == cut
    assert min(steps.losses) == step  # the step of the cut is lost, and none before it
    assert steps.losses == {k: v for k, v in losses.items() if k in steps.losses}
    assert run_digests(resumed) == run_digests(run)
    assert not (resumed / "checkpoints" / "stage.ckpt").exists()
    assert logged_steps(resumed) == logged_steps(run)


@pytest.mark.slow
def test_loader_processes_change_nothing_on_the_way(
    make: Make, whole: tuple[Path, dict[int, float]], tmp_path: Path
) -> None:
    with pytest.raises(CutError):
        make(CutAfter(3), workers=2).build(tmp_path).fit()
    assert run_digests(make(workers=2).build(tmp_path).fit("last")) == run_digests(whole[0])


@pytest.mark.slow
def test_a_signal_in_training_saves_the_step_and_the_run_resumes_after_it(
    make: Make, whole: tuple[Path, dict[int, float]], tmp_path: Path
) -> None:
    run, losses = whole
    interrupted = make(SignalAfter(3), trainer={"checkpoint_every_n_steps": 0}).build(tmp_path)
    with pytest.raises(
        Interrupted, match=r"ended by SIGTERM in stage 1/2 paint, train; resume"
    ) as e:
        interrupted.fit()
    assert e.value.exit_status == 143
    steps = Steps()
    assert run_digests(make(steps).build(tmp_path).fit("last")) == run_digests(run)
    assert steps.losses == {k: v for k, v in losses.items() if k > 3}


@pytest.mark.slow
def test_gradients_that_are_being_accumulated_are_never_saved(make: Make, tmp_path: Path) -> None:
    task = replace(TASKS[0], train="synthetic://paint/train?size=7")
    one = replace(make(trainer={"accumulate_grad_batches": 3}), tasks=[task])
    whole = one.build(tmp_path / "whole").fit()
    with pytest.raises(CutError):
        replace(one, callbacks=[CutAfter(3)]).build(tmp_path / "cut").fit()
    assert run_digests(one.build(tmp_path / "cut").fit("auto")) == run_digests(whole)


@pytest.mark.slow
def test_one_expert_for_all_tasks_resumes_within_a_later_stage(make: Make, tmp_path: Path) -> None:
    parts = {"allocator": UniformAllocator, "router": SharedRouter}
    shared = replace(
        make(stream=SequentialStream("shared"), **parts),
        tasks=[replace(task, epochs=1) for task in TASKS],
    )
    whole = shared.build(tmp_path / "whole").fit()
    with pytest.raises(CutError):
        replace(shared, callbacks=[CutAfter(4)]).build(tmp_path / "cut").fit()
    assert run_digests(shared.build(tmp_path / "cut").fit("auto")) == run_digests(whole)


def test_a_checkpoint_within_a_stage_holds_one_expert_and_its_optimizer(
    cut_after: Callable[[int, Path], Path], tmp_path: Path
) -> None:
    file = cut_after(6, tmp_path) / "checkpoints" / "stage.ckpt"
    content = read_checkpoint(file)
    assert {key.split("/")[0] for key in content["state_dict"]} == {"count"}
    numbers = sum(tensor.numel() for tensor in content["state_dict"].values())
    assert file.stat().st_size < 3 * 4 * numbers + 200_000


@pytest.mark.slow
def test_a_stage_of_another_run_is_not_resumed(
    make: Make,
    cut_after: Callable[[int, Path], Path],
    whole: tuple[Path, dict[int, float]],
    tmp_path: Path,
) -> None:
    one, two = cut_after(4, tmp_path / "one"), cut_after(2, tmp_path / "two")
    shutil.copy(one / "checkpoints" / "stage.ckpt", two / "checkpoints" / "stage.ckpt")
    steps = Steps()
    run = make(steps).build(tmp_path / "two").fit("last")
    assert min(steps.losses) == 1
    assert run_digests(run) == run_digests(whole[0])


def test_a_damaged_stage_is_refused_by_name(
    make: Make, cut_after: Callable[[int, Path], Path], tmp_path: Path
) -> None:
    file = cut_after(6, tmp_path) / "checkpoints" / "stage.ckpt"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"cannot read checkpoint .*stage\.ckpt"):
        make().build(tmp_path).fit("last")


Place = tuple[Any, ...]
FORGED: list[tuple[str, Place, Any]] = [
    ("optimizer_states", (0, "state", 0, "exp_avg"), "x"),
    ("optimizer_states", (0, "state", 0, "exp_avg"), torch.zeros(2, 3)),
    ("optimizer_states", (0, "state", 0), 7),
    ("optimizer_states", (0, "param_groups", 0, "betas"), None),
    ("optimizer_states", (), []),
    ("lr_schedulers", (0, "last_epoch"), "x"),
    ("lr_schedulers", (0, "_step_count"), None),
    ("loops", ("fit_loop", "epoch_loop.batch_progress", "current", "ready"), "x"),
    ("loops", ("fit_loop", "epoch_progress"), []),
    ("loops", (), {}),
    ("sequence_stage", ("samples",), "x"),
    ("sequence_stage", ("loader", "taken"), -1),
    ("sequence_stage", ("loader", "rule"), ["x"]),
    ("sequence_stage", ("ranks",), []),
]
"""Values of other types, at places that Lightning, torch and this package read on a resume."""


@pytest.mark.parametrize(
    ("part", "where", "value"),
    [pytest.param(*row, marks=SLOW if n % 4 else ()) for n, row in enumerate(FORGED)],
)
def test_a_stage_with_values_of_other_types_is_refused_in_one_line(
    part: str,
    where: Place,
    value: Any,
    make: Make,
    cut_after: Callable[[int, Path], Path],
    tmp_path: Path,
) -> None:
    file = cut_after(6, tmp_path) / "checkpoints" / "stage.ckpt"
    content = read_checkpoint(file)
    save_checkpoint({**content, part: replaced(content[part], where, value)}, file)
    with pytest.raises(ValueError, match=r"cannot use checkpoint .*stage\.ckpt: .") as caught:
        make().build(tmp_path).fit("last")
    assert "\n" not in str(caught.value)


def test_an_error_of_the_first_step_after_a_resume_does_not_name_the_checkpoint(
    make: Make, cut_after: Callable[[int, Path], Path], tmp_path: Path
) -> None:
    cut_after(6, tmp_path)
    with pytest.raises(CutError):
        make(CutAfter(6)).build(tmp_path).fit("last")


LIMIT = 300_000
"""Bytes a file may have: enough for the first checkpoint, too few for an expert's optimizer."""


@pytest.mark.slow
def test_a_disk_that_is_full_leaves_the_last_checkpoint_and_the_run_resumes_later(
    fit_words: FitWords, quick_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--trainer.checkpoint_every_n_steps", "1", "--ckpt_path", "auto", *NO_FIGURES]
    words = fit_words(tmp_path, *flags)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, limits[1]))
    try:
        assert main(words) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    run = tmp_path / "small" / "version_0"
    *_, error = capsys.readouterr().err.splitlines()
    assert error.startswith("dmole: [Errno 27] File too large: '")
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["done"] == [[0, "evaluate"]]
    assert main(words) == 0
    assert run_digests(run) == run_digests(quick_run)
    assert not list(tmp_path.rglob("*.part"))
