"""Training that is cut short goes on at its last saved step, and ends bit-equal."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dmole.allocation import UniformAllocator
from dmole.callbacks import ContinualCallback
from dmole.cli.main import main
from dmole.data import Task
from dmole.routing import SharedRouter
from dmole.run import Interrupted
from dmole.run.checkpoint_file import read_checkpoint
from dmole.streams.stream import SequentialStream

TASKS = [
    Task(
        name,
        train=f"synthetic://{name}/train?size=7",  # the last of its four batches is smaller
        test=f"synthetic://{name}/test?size=4",
        epochs=2,
        max_new_tokens=3,
    )
    for name in ("paint", "count")
]


class CutError(Exception):
    """Stands for whatever ends a process."""


class CutAfter(ContinualCallback):
    """Ends the run at a step, before that step is saved."""

    def __init__(self, step: int):
        self.step = step

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            raise CutError


class SignalAfter(CutAfter):
    """Asks the run to end at a step."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


class Steps(ContinualCallback):
    """Remembers the loss of each step."""

    def __init__(self):
        self.losses: dict[int, float] = {}

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.losses[trainer.global_step] = float(outputs["loss"])


@pytest.fixture(scope="module")
def make(recipe):
    """Return a function that describes the run; its dropout makes random draws matter."""

    def make(*callbacks, workers: int = 0, **parts):
        trainer = {"checkpoint_every_n_steps": 1} | parts.pop("trainer", {})
        return recipe(
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
def whole(make, tmp_path_factory):
    steps = Steps()
    return make(steps).build(tmp_path_factory.mktemp("whole")).fit(), steps.losses


@pytest.mark.parametrize("step", [2, 4, 5, 8, 11, 16])
def test_a_stage_cut_at_any_step_goes_on_within_the_epoch(make, whole, tmp_path, digests, step):
    run, losses = whole
    cut = make(CutAfter(step)).build(tmp_path)
    with pytest.raises(CutError):
        cut.fit()
    torch.manual_seed(99)  # a new process has drawn other numbers
    steps = Steps()
    resumed = make(steps).build(tmp_path).fit("auto")
    assert resumed == cut.trainer.run_dir
    assert min(steps.losses) == step  # the step of the cut is lost, and none before it
    assert steps.losses == {k: v for k, v in losses.items() if k in steps.losses}
    assert digests(resumed) == digests(run)
    assert not (resumed / "checkpoints" / "stage.ckpt").exists()


def test_loader_processes_change_nothing_on_the_way(make, whole, tmp_path, digests):
    with pytest.raises(CutError):
        make(CutAfter(7), workers=2).build(tmp_path).fit()
    assert digests(make(workers=2).build(tmp_path).fit("last")) == digests(whole[0])


def test_a_signal_in_training_saves_the_step_and_the_run_goes_on_behind_it(
    make, whole, tmp_path, digests
):
    run, losses = whole
    asked = make(SignalAfter(6), trainer={"checkpoint_every_n_steps": 0}).build(tmp_path)
    with pytest.raises(
        Interrupted, match=r"ended by SIGTERM in stage 1/2 paint, train; resume"
    ) as e:
        asked.fit()
    assert e.value.exit_status == 143
    steps = Steps()
    assert digests(make(steps).build(tmp_path).fit("last")) == digests(run)
    assert steps.losses == {k: v for k, v in losses.items() if k > 6}


def test_gradients_that_are_being_accumulated_are_never_saved(make, tmp_path, digests):
    trainer = {"accumulate_grad_batches": 3}
    whole = make(trainer=trainer).build(tmp_path / "whole").fit()
    with pytest.raises(CutError):
        make(CutAfter(3), trainer=trainer).build(tmp_path / "cut").fit()
    assert digests(make(trainer=trainer).build(tmp_path / "cut").fit("auto")) == digests(whole)


def test_one_expert_for_all_tasks_goes_on_within_a_later_stage(make, tmp_path, digests):
    parts = {
        "stream": SequentialStream("shared"),
        "allocator": UniformAllocator,
        "router": SharedRouter,
    }
    whole = make(**parts).build(tmp_path / "whole").fit()
    with pytest.raises(CutError):
        make(CutAfter(12), **parts).build(tmp_path / "cut").fit()
    assert digests(make(**parts).build(tmp_path / "cut").fit("auto")) == digests(whole)


def test_a_checkpoint_within_a_stage_holds_one_expert_and_its_optimizer(make, tmp_path):
    cut = make(CutAfter(12)).build(tmp_path)
    with pytest.raises(CutError):
        cut.fit()
    folder = cut.trainer.run_dir / "checkpoints"
    content = read_checkpoint(folder / "stage.ckpt")
    assert {key.split("/")[0] for key in content["state_dict"]} == {"count"}
    numbers = sum(tensor.numel() for tensor in content["state_dict"].values())
    assert (folder / "stage.ckpt").stat().st_size < 3 * 4 * numbers + 200_000


def test_a_stage_of_another_run_is_not_gone_on_with(make, whole, tmp_path, digests):
    for name, step in (("one", 6), ("two", 3)):
        with pytest.raises(CutError):
            make(CutAfter(step)).build(tmp_path / name).fit()
    folders = [tmp_path / name / "dmole" / "version_0" / "checkpoints" for name in ("one", "two")]
    shutil.copy(folders[0] / "stage.ckpt", folders[1] / "stage.ckpt")
    steps = Steps()
    run = make(steps).build(tmp_path / "two").fit("last")
    assert min(steps.losses) == 1
    assert digests(run) == digests(whole[0])


def test_a_damaged_stage_is_refused_by_name(make, tmp_path):
    with pytest.raises(CutError):
        make(CutAfter(6)).build(tmp_path).fit()
    file = tmp_path / "dmole" / "version_0" / "checkpoints" / "stage.ckpt"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"cannot read checkpoint .*stage\.ckpt"):
        make().build(tmp_path).fit("last")


LIMIT = 300_000
"""Bytes a file may have: enough for the first checkpoint, too few for an expert's optimizer."""


def test_a_disk_that_is_full_leaves_the_last_checkpoint_and_the_run_goes_on_later(
    fit_words, quick_run, tmp_path, digests
):
    words = fit_words(tmp_path, "--trainer.checkpoint_every_n_steps", "1", "--ckpt_path", "auto")
    done = subprocess.run(
        [sys.executable, "-m", "dmole", *words],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT)),
    )
    assert done.returncode == 1
    run = tmp_path / "small" / "version_0"
    assert done.stderr.splitlines()[-1].startswith("dmole: [Errno 27] File too large: '")
    assert len(done.stderr.splitlines()) == 1
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["done"] == [[0, "evaluate"]]
    assert main(words) == 0
    assert digests(run) == digests(quick_run)
    assert not list(Path(tmp_path).rglob("*.part"))
