"""Signals are noted at once and obeyed at safe points."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import stat
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch.distributed as dist
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.strategies import SingleDeviceStrategy
from two_ranks import free_port

from dmole.distributed import gather_objects
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


def block() -> None:
    """Lock a mutex twice: no signal interrupts the second call, as in a collective operation."""
    mutex = ctypes.create_string_buffer(64)
    for _ in range(2):
        ctypes.CDLL(None).pthread_mutex_lock(mutex)


def in_child(act: Callable[[], None], folder: Path) -> tuple[int | None, str]:
    """Return exit status and standard error of a forked process."""

    def run() -> None:
        os.dup2(os.open(folder / "said", os.O_CREAT | os.O_WRONLY), 2)
        act()

    child = multiprocessing.get_context("fork").Process(target=run)
    child.start()
    child.join(60)
    child.kill()
    return child.exitcode, (folder / "said").read_text()


def signalled(
    number: signal.Signals, wait: Callable[[], None], pauses: Sequence[float], now: bool = False
) -> Callable[[], None]:
    """Return what waits in the main thread while a signal arrives after each pause."""

    def send() -> None:
        for pause in pauses:
            time.sleep(pause)
            os.kill(os.getpid(), number)

    def act() -> None:
        interruption = Interruption(lambda: "resume with --ckpt_path runs/x")
        threading.Thread(target=send, daemon=True).start()
        told = interruption.handled(None, lambda number: os.write(2, b"told %d\n" % number))
        with told, interruption.immediate() if now else nullcontext():
            wait()

    return act


# the second signal of three is the same request from another sender; late ones for a slow machine
REPEATED = (0.5, 0, *[1.5] * 20)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("wait", [lambda: time.sleep(60), block])
def test_a_second_signal_ends_the_process_and_its_children_at_once(
    number: signal.Signals, wait: Callable[[], None], tmp_path: Path
) -> None:
    status, said = in_child(signalled(number, wait, REPEATED), tmp_path)
    assert status == 128 + number
    name = number.name
    assert said.splitlines() == [
        f"dmole: {name}: ending at the next safe point; again: at once",
        "told 15",
        "told 9",
        f"dmole: {name}: ended by a second signal; resume with --ckpt_path runs/x",
    ]


def test_the_first_signal_ends_a_process_that_waits_for_the_other_ranks(tmp_path: Path) -> None:
    status, said = in_child(signalled(signal.SIGTERM, block, [0.5], now=True), tmp_path)
    assert status == 128 + signal.SIGTERM
    assert "SIGTERM: ended before all ranks were connected" in said


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


def test_a_second_sigterm_ends_a_rank_that_waits_for_another_one(tmp_path: Path) -> None:
    port = free_port()

    def on_rank(rank: int) -> None:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        dist.init_process_group("gloo", rank=rank, world_size=2)
        if rank:
            time.sleep(60)
        else:
            gather_objects(rank)

    other = multiprocessing.get_context("fork").Process(target=on_rank, args=(1,))
    other.start()
    act = signalled(signal.SIGTERM, lambda: on_rank(0), [3.0, *[1.5] * 20])
    status, said = in_child(act, tmp_path)
    other.kill()
    other.join()
    assert status == 128 + signal.SIGTERM
    assert "SIGTERM: ended by a second signal" in said


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
