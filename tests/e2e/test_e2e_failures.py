"""A failure of one process ends all processes quickly and reports its cause."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_runs import FitWords, find_processes

pytestmark = pytest.mark.slow

SECONDS = 30
"""All processes must be gone by then."""

FAULTY = """
import os
import signal
import time
from pathlib import Path

from dmole.callbacks import ContinualCallback
from dmole.run.state import sequence_of


class Fails(ContinualCallback):
    def __init__(self, rank: int, phase: str, killed: bool, note: str) -> None:
        self.rank, self.phase, self.killed, self.note = rank, phase, killed, note

    def _fail(self, trainer):
        if (trainer.global_rank, sequence_of(trainer).phase) == (self.rank, self.phase):
            Path(self.note).write_text(str(time.time()))
            if self.killed:
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError(f"the disk of rank {self.rank} is gone")

    def on_stage_start(self, state, module):
        if self.phase == "allocate":
            self.phase = "train"
            self._fail(state.trainer)

    def on_train_batch_end(self, trainer, *args):
        self._fail(trainer)

    def on_test_batch_end(self, trainer, *args):
        if sequence_of(trainer).stage.index:
            self._fail(trainer)

    def on_stage_trained(self, state, module):
        self._fail(state.trainer)
"""

LAUNCHERS = {
    "lightning": ["-m"],
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"],
}

BLOCKED = """
import socket


def refuse(*address):
    raise TimeoutError("timed out")


socket.create_connection = refuse
"""
"""As between nodes with no other open port than MASTER_PORT."""


def assert_loss_is_reported(said: str, rank: int, folder: Path, launcher: str) -> None:
    lines = [line for line in said.splitlines() if line.startswith("dmole: rank ")]
    told = re.fullmatch(
        rf"dmole: rank {1 - rank} ends: rank {rank} \(process \d+ on .+\) is lost(.*); "
        rf"resume with --ckpt_path {re.escape(str(folder / 'small' / 'version_0'))}",
        lines[-1],
    )
    assert told, said
    assert len(lines) == 1
    knows = launcher == "lightning" and rank == 1  # rank 0 has started the other
    assert told[1].startswith(": killed by SIGKILL") == knows
    if launcher == "lightning":
        assert said.splitlines()[-1] == lines[-1]


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize(
    ("rank", "phase"),
    [(1, "allocate"), (1, "train"), (0, "train"), (1, "evaluate"), (0, "router"), (1, "router")],
)
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_all_processes_end_soon_after_one_has_failed(
    fit_words: FitWords, tmp_path: Path, launcher: str, rank: int, phase: str, killed: bool
) -> None:
    check_end(fit_words, tmp_path, launcher, rank, phase, killed)


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize(("rank", "phase"), [(1, "allocate"), (0, "train"), (1, "evaluate")])
def test_all_processes_of_a_split_base_end_soon_after_one_has_failed(
    fit_words: FitWords, tmp_path: Path, rank: int, phase: str, killed: bool
) -> None:
    check_end(fit_words, tmp_path, "lightning", rank, phase, killed, "sharded_base")


def check_end(
    fit_words: FitWords,
    tmp_path: Path,
    launcher: str,
    rank: int,
    phase: str,
    killed: bool,
    strategy: str = "ddp",
) -> None:
    (tmp_path / "faulty.py").write_text(FAULTY, encoding="utf-8")
    note, said = tmp_path / "note", tmp_path / "said"
    callback = {"rank": rank, "phase": phase, "killed": killed, "note": str(note)}
    flags = ["--trainer.devices", "2", "--trainer.strategy", strategy, "--data.batch_size", "4"]
    flags += [f"--trainer.callbacks+={{class_path: faulty.Fails, init_args: {callback}}}"]
    flags += ["--trust_classes", "faulty"]
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    with said.open("wb") as output:
        done = subprocess.run(
            [sys.executable, *LAUNCHERS[launcher], "dmole", *fit_words(tmp_path, *flags)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": path},
            timeout=300,
        )
    assert note.exists(), said.read_text()
    while find_processes(tmp_path) and time.time() - float(note.read_text()) < SECONDS:
        time.sleep(0.2)
    assert not find_processes(tmp_path)
    assert time.time() - float(note.read_text()) < SECONDS
    assert done.returncode != 0
    if killed:
        assert_loss_is_reported(said.read_text(), rank, tmp_path, launcher)
    else:
        assert f"the disk of rank {rank} is gone" in said.read_text()
        if launcher == "lightning":  # torchrun prints a traceback of its own
            assert "Traceback" not in said.read_text()


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_processes_without_other_ports_than_that_of_the_launcher_end_together(
    fit_words: FitWords, tmp_path: Path, launcher: str, fails: bool
) -> None:
    (tmp_path / "faulty.py").write_text(FAULTY + BLOCKED, encoding="utf-8")
    rank = 1 if fails else 2  # there is no rank 2
    callback = {"rank": rank, "phase": "train", "killed": False, "note": str(tmp_path / "note")}
    flags = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.batch_size", "4"]
    flags += [f"--trainer.callbacks+={{class_path: faulty.Fails, init_args: {callback}}}"]
    flags += ["--trust_classes", "faulty"]
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *LAUNCHERS[launcher], "dmole", *fit_words(tmp_path, *flags)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
        timeout=300,
    )
    said = done.stdout + done.stderr
    assert said.count("rank 1 cannot connect to port") == 1, said
    assert (done.returncode != 0) == fails, said
    assert ("dmole: rank 0 ends: rank 1 failed: the disk of rank 1 is gone" in said) == fails
    assert ("is lost" in said) is False
    assert not find_processes(tmp_path)
