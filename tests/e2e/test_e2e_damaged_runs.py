"""Damaged run folders: every verb that reads one ends with a result or one line."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dmole.cli.main import main
from experiments.fuzz_run_folder import attempt, fuzz
from experiments.mutations import bomb, mutate
from experiments.odd_values import VALUES, paths_in, replaced

READ = (
    "model.json",
    "experts/experts.json",
    "experts/color/adapter_config.json",
    "experts/color/adapter_model.safetensors",
    "router/router.json",
    "router/color.safetensors",
)
"""Files that ``predict`` reads."""


@pytest.fixture
def run(quick_run: Path, tmp_path: Path) -> Path:
    """Copy of what ``predict`` reads of a finished run."""
    unused = shutil.ignore_patterns("events*", "figures", "checkpoints", "predictions")
    return shutil.copytree(quick_run, tmp_path / "run" / "version_0", ignore=unused)


def read_by_predict(run: Path, name: str) -> Path:
    """Return a file of the first expert of a run, whatever its name."""
    experts = [path.name for path in sorted((run / "experts").iterdir()) if path.is_dir()]
    return run / name.replace("color", experts[0])


def predict(run: Path, capsys: pytest.CaptureFixture[str]) -> str | None:
    """Return the line with which ``predict`` refuses a run; None if it answers."""
    status = main(["predict", str(run), "--prompt", "what is it?"])
    lines = capsys.readouterr().err.splitlines()
    if status == 0:
        return None
    assert len(lines) == 1
    assert len(lines[0]) < 1000
    return lines[0]


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def doubling(path: Path) -> None:
    path.touch()
    bomb(random.Random(0), path)


@pytest.mark.parametrize(
    ("name", "put"),
    [
        *((name, pipe) for name in READ),
        *((name, put) for name in READ[::4] for put in (device, loop, Path.mkdir, doubling)),
    ],
)
def test_predict_refuses_what_is_no_file_of_its_kind(
    name: str, put: Callable[[Path], None], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = read_by_predict(run, name)
    path.unlink()
    put(path)
    line = predict(run, capsys)
    assert line is not None
    assert str(path.parent if "adapter" in name else path) in line


@pytest.mark.parametrize(
    "seed", [*range(3), *(pytest.param(s, marks=pytest.mark.slow) for s in range(3, 8))]
)
def test_predict_answers_or_refuses_a_damaged_run(
    seed: int, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(seed)
    path = read_by_predict(run, rng.choice(READ))
    mutate(rng, path)
    predict(run, capsys)
    assert not list(run.parent.rglob("executed"))


def test_the_fuzzer_finds_an_exception_a_hang_and_an_execution(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert attempt(["--version"], log, 60) == "0"
    assert attempt(["score", "a", "--metric", "iou"], log, 60) == "1"
    assert "file a does not exist" in log.read_text()

    def raises(words: list[str]) -> int:
        raise KeyError(words[0])

    def waits(words: list[str]) -> int:
        time.sleep(60)
        return 0

    assert attempt(["x"], log, 60, raises) == "exception"
    assert "KeyError: 'x'" in log.read_text()
    assert attempt([], log, 1, waits) == "hang"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.json").write_text("{}")

    def executes(words: list[str]) -> int:
        (Path(words[1]) / "executed").touch()
        return 0

    report = fuzz(tmp_path / "run", ["predict"], 60, 0, attempts=2, verb_main=executes)
    assert report.outcomes == {"predict 0": 2}
    assert ["EXECUTED" in finding for finding in report.findings] == [True, True]


def test_values_are_replaced_at_every_path() -> None:
    content = {"a": [1, {"b": 2}]}
    paths = list(paths_in(content))
    assert paths == [(), ("a",), ("a", 0), ("a", 1), ("a", 1, "b")]
    assert replaced(content, ("a", 1, "b"), VALUES[0]) == {"a": [1, {"b": None}]}
    assert content == {"a": [1, {"b": 2}]}


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["predict", "compare", "evaluate", "fit"])
def test_a_minute_of_damage_finds_nothing(verb: str, quick_run: Path) -> None:
    report = fuzz(quick_run, [verb], 60, seed=5)
    assert report.outcomes
    assert report.findings == []
