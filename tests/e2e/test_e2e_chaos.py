"""Runs ended at random instants finish like the run that was left alone, byte for byte."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from run_digests import logged_steps, run_digests
from small_runs import find_processes

pytestmark = pytest.mark.slow

NAMES = ("paint", "count", "read")
CONFIG = {
    "trainer": {
        "name": "chaos",
        "enable_progress_bar": False,
        "log_every_n_steps": 1,
        "checkpoint_every_n_steps": 3,
    },
    "model": {"dropout": 0.1},  # so that the random generators matter
    "data": {
        "batch_size": 8,
        "eval_batch_size": 8,
        "tasks": [
            {
                "name": name,
                "train": f"synthetic://{name}/train?size=160",
                "test": f"synthetic://{name}/test?size=48",
                "epochs": 2,
                "max_new_tokens": 4,
            }
            for name in NAMES
        ],
    },
}
TWO_PROCESSES = ("--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.batch_size", "4")
START = 120
"""Seconds after which a process that has not reached a phase fails the test."""
PHASES = [(0, "evaluate")] + [
    (stage, phase) for stage in (1, 2, 3) for phase in ("train", "router", "evaluate")
]


@dataclass
class Fit:
    """One process of ``dmole fit`` and what it says."""

    root: Path
    flags: Sequence[str] = ()

    def __post_init__(self) -> None:
        config = self.root / "chaos.yaml"
        config.write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
        words = ["fit", "--config", "quickstart.yaml", "--config", str(config)]
        words += ["--trainer.default_root_dir", str(self.root), "--ckpt_path", "auto", *self.flags]
        self._said = self.root / f"said_{len(list(self.root.glob('said_*')))}.txt"
        with self._said.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "dmole", *words],
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def lines(self) -> list[str]:
        return self._said.read_text(encoding="utf-8").splitlines()

    @property
    def run(self) -> Path:
        return self.root / "chaos" / "version_0"

    def wait_for(self, stage: int, phase: str) -> None:
        """Wait until a phase begins, or is known to be over."""
        deadline = time.monotonic() + START
        begun = [f"stage {s}/3 " for s in range(stage, 4)]
        while time.monotonic() < deadline and self.process.poll() is None:
            for line in self.lines:
                if line.startswith(begun[0]) and line.endswith(phase):
                    return
                if any(line.startswith(later) for later in begun[1:]):
                    return
            time.sleep(0.02)
        assert self.process.poll() is not None, f"never reached {stage} {phase}: {self.lines}"

    def finish(self) -> Path:
        assert self.process.wait(timeout=600) == 0, "\n".join(self.lines)
        return self.run


Timed = tuple[Path, dict[tuple[int, str], float]]
"""A run, and the seconds each of its phases took, by stage and name."""


def reference(folder: Path, *flags: str) -> Timed:
    """Return an uninterrupted run and the seconds each of its phases took."""
    run = Fit(folder, flags).finish()
    laps = json.loads((run / "timing.json").read_text())["phases"]
    return run, {(lap["stage"], lap["phase"]): lap["seconds"] for lap in laps}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Timed:
    return reference(tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def alone_two(tmp_path_factory: pytest.TempPathFactory) -> Timed:
    return reference(tmp_path_factory.mktemp("alone_two"), *TWO_PROCESSES)


def instants(
    seed: int, seconds: dict[tuple[int, str], float], count: int
) -> list[tuple[int, str, float]]:
    """Return phases in the order of the run with a random delay in each; training most often."""
    draw = random.Random(seed)
    chosen = [PHASES[i % len(PHASES)] for i in range(count - count // 3)]
    chosen += [(1 + i % 3, "train") for i in range(count // 3)]
    return [
        (*phase, draw.uniform(0, 0.6) * seconds[phase])
        for phase in sorted(chosen, key=PHASES.index)
    ]


def ended(fit: Fit, at: tuple[int, str, float], end: Callable[[Fit], None]) -> bool:
    """End a process some seconds into a phase; return whether it was still running."""
    stage, phase, delay = at
    fit.wait_for(stage, phase)
    time.sleep(delay)
    running = fit.process.poll() is None
    end(fit)
    fit.process.wait(timeout=60)
    return running


def kill(fit: Fit) -> None:
    fit.process.kill()


def assert_logged(run: Path, whole: Path, missing: int) -> None:
    """Check that no step is logged twice, and that at most some are not logged at all.

    Lightning logs a step after its checkpoint, and a process may be killed between the two.
    """
    ours, theirs = logged_steps(run), logged_steps(whole)
    assert ours.keys() == theirs.keys()
    for name, steps in ours.items():
        assert steps == sorted(set(steps)), name
        assert set(steps) <= set(theirs[name]), name
        assert len(steps) >= len(theirs[name]) - missing, name


Survives = Callable[..., None]


@pytest.fixture
def survives(tmp_path: Path) -> Survives:
    """Return a check: runs killed again and again end like a given one."""

    def check(reference: Timed, kills: int, seed: int, *flags: str) -> None:
        run, seconds = reference
        hit = 0
        for chain in range(2 * kills):  # a run that ends before its next instant makes way
            root = tmp_path / f"chain_{chain}"
            root.mkdir()
            for at in instants(seed + chain, seconds, kills):
                if hit == kills or not ended(Fit(root, flags), at, kill):
                    break
                hit += 1
            ended_run = Fit(root, flags).finish()
            assert run_digests(ended_run) == run_digests(run)
            assert_logged(ended_run, run, missing=kills)
            assert not list(root.rglob("*.part"))
            if hit == kills:
                return
        pytest.fail(f"only {hit} of {kills} processes were killed before their end")

    return check


def test_a_run_killed_at_any_instant_ends_the_same(alone: Timed, survives: Survives) -> None:
    survives(alone, 14, 1)


def test_a_run_with_workers_killed_at_any_instant_ends_the_same(
    alone: Timed, survives: Survives
) -> None:
    survives(alone, 4, 2, "--data.num_workers", "2")


def test_two_processes_killed_at_any_instant_end_the_same(
    alone_two: Timed, survives: Survives, tmp_path: Path
) -> None:
    survives(alone_two, 5, 3, *TWO_PROCESSES, "--data.num_workers", "2")
    deadline = time.monotonic() + START
    while left := find_processes(tmp_path):  # those started by a killed process end by themselves
        assert time.monotonic() < deadline, left
        time.sleep(0.5)


@pytest.mark.parametrize(("name", "times"), [("SIGTERM", 4), ("SIGUSR1", 1), ("SIGINT", 1)])
def test_a_run_that_receives_a_signal_saves_logs_it_and_ends_the_same(
    alone: Timed, tmp_path: Path, name: str, times: int
) -> None:
    run, seconds = alone
    number = getattr(signal, name)
    signals = 0
    for at in instants(number, seconds, times):
        fit = Fit(tmp_path)
        if ended(fit, at, lambda fit: fit.process.send_signal(number)):
            assert fit.process.returncode == 128 + number, "\n".join(fit.lines)
            assert f"ended by {name} in stage" in fit.lines[-1]
            signals += 1
    assert signals == times
    assert run_digests(Fit(tmp_path).finish()) == run_digests(run)


def test_two_processes_that_receive_a_signal_end_together(alone_two: Timed, tmp_path: Path) -> None:
    run, seconds = alone_two
    fit = Fit(tmp_path, TWO_PROCESSES)
    assert ended(fit, (1, "train", seconds[1, "train"] / 3), lambda f: f.process.terminate())
    assert fit.process.returncode == 128 + signal.SIGTERM, "\n".join(fit.lines)
    assert run_digests(Fit(tmp_path, TWO_PROCESSES).finish()) == run_digests(run)
