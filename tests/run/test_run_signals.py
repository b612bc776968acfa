"""Signals are noted at once and obeyed at safe points."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.strategies import SingleDeviceStrategy

from dmole.run import Interrupted, Interruption
from dmole.run.signals import requeue

STRATEGY = SingleDeviceStrategy("cpu")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_is_noted_told_to_children_and_obeyed_at_the_next_check(
    number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    interruption, told = Interruption(), []
    before = signal.getsignal(number)
    with interruption.handled(None, told.append):
        interruption.check(STRATEGY)
        os.kill(os.getpid(), number)
        assert interruption.requested
        with pytest.raises(Interrupted) as stop:
            interruption.check(STRATEGY)
    assert stop.value.exit_status == 128 + number
    assert told == [signal.SIGTERM]
    assert signal.getsignal(number) is before
    assert capfd.readouterr().err == f"dmole: {number.name}: ending at the next safe point\n"


def test_a_loop_gives_one_batch_at_least_and_no_more_than_needed() -> None:
    interruption = Interruption()
    assert list(interruption.until_requested(range(3))) == [0, 1, 2]
    interruption.signum = signal.SIGTERM
    assert list(interruption.until_requested(range(3))) == [0]


TWICE = """
import os, signal, sys
from dmole.run import Interruption
with Interruption().handled(None, lambda number: print(f"told {number}", flush=True)):
    os.kill(os.getpid(), signal.SIGINT)
    print("still here", flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    print("never", flush=True)
"""


def test_a_second_ctrl_c_ends_the_process_and_its_children_at_once() -> None:
    done = subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True)
    assert done.returncode == -signal.SIGINT
    assert done.stdout == "told 15\nstill here\ntold 9\n"


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for SLURM's command that writes down how it was called."""
    script = tmp_path / "scontrol"
    script.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/called\nexit ${{FAIL:-0}}\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    return tmp_path / "called"


def test_slurm_queues_the_job_again_after_its_signal_only(
    scontrol: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = SLURMEnvironment(auto_requeue=True)
    assert requeue(environment, signal.SIGTERM) == ""
    assert requeue(None, signal.SIGUSR1) == ""
    assert not scontrol.exists()
    assert requeue(environment, signal.SIGUSR1) == "job 42 is queued again"
    assert scontrol.read_text() == "requeue 42\n"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    requeue(environment, signal.SIGUSR1)
    assert scontrol.read_text() == "requeue 7_3\n"


def test_a_job_that_cannot_be_queued_again_is_said(
    scontrol: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = SLURMEnvironment(auto_requeue=True)
    monkeypatch.setenv("FAIL", "3")
    assert requeue(environment, signal.SIGUSR1) == "not queued again: scontrol: 3"
    monkeypatch.setenv("SLURM_JOB_ID", "42; rm -rf /")
    assert "SLURM_JOB_ID" in requeue(environment, signal.SIGUSR1)
