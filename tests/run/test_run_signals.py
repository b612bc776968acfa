"""Signals are noted at once and obeyed at safe points."""

from __future__ import annotations

import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import time
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
    said = f"dmole: {number.name}: ending at the next safe point; again: at once\n"
    assert capfd.readouterr().err == said


def test_a_loop_gives_one_batch_at_least_and_no_more_than_needed() -> None:
    interruption = Interruption()
    assert list(interruption.until_requested(range(3))) == [0, 1, 2]
    interruption.signum = signal.SIGTERM
    assert list(interruption.until_requested(range(3))) == [0]


BLOCKED_CALL = (
    "import ctypes; m = bytes(64); [ctypes.CDLL(None).pthread_mutex_lock(m) for _ in '12']"
)
"""Locks a mutex twice: no signal interrupts the second call, as in a collective operation."""

TWICE = """
import os, signal, sys, threading, time
from dmole.run import Interruption

def send():
    for pause in (0.5, 0, 1.5):  # the second is the same request from another sender
        time.sleep(pause)
        os.kill(os.getpid(), signal.{name})

threading.Thread(target=send, daemon=True).start()
interruption = Interruption(lambda: "resume with --ckpt_path runs/x")
with interruption.handled(None, lambda number: print(f"told {{number}}", flush=True)):
    {wait}
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("wait", ["time.sleep(30)", BLOCKED_CALL])
def test_a_second_signal_ends_the_process_and_its_children_at_once(name: str, wait: str) -> None:
    code = TWICE.format(name=name, wait=wait)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=25)
    assert done.returncode == 128 + getattr(signal, name)
    assert done.stdout == "told 15\ntold 9\n"
    assert done.stderr == (
        f"dmole: {name}: ending at the next safe point; again: at once\n"
        f"dmole: {name}: ended by a second signal; resume with --ckpt_path runs/x\n"
    )


def test_the_first_signal_ends_a_process_that_waits_for_the_other_ranks() -> None:
    wait = f"\n    with interruption.immediate():\n        {BLOCKED_CALL}"
    code = TWICE.format(name="SIGTERM", wait=wait).replace("(0.5, 0, 1.5)", "(0.5,)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=25)
    assert done.returncode == 128 + signal.SIGTERM
    assert "SIGTERM: ended before all ranks were connected" in done.stderr


def test_a_signal_to_a_forked_worker_is_none_of_its_parent() -> None:
    interruption = Interruption()
    with interruption.handled(None, lambda number: None):
        context = multiprocessing.get_context("fork")
        started = context.Event()
        worker = context.Process(target=lambda: (started.set(), time.sleep(30)))
        worker.start()
        assert started.wait(30)
        for _ in range(2):
            os.kill(worker.pid or 0, signal.SIGINT)
            time.sleep(1.2)  # a second request would end this process
        worker.kill()
        worker.join()
    assert not interruption.requested


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
