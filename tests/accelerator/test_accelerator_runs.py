"""Whole runs on a fake accelerator: no tensor on the wrong device, few waits of the host.

Each run is stopped by a signal in its second stage and resumed, evaluated again and asked.
`inference_mode`, NCCL and the kernels of a GPU are not covered.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from families import FAMILIES
from method_runs import METHODS
from safetensors.torch import load_file
from torch.testing import assert_close

HERE = Path(__file__).resolve().parent
Case = tuple[str, str, int]
"""Method, family, number of ranks."""
Seen = Callable[[Case], list[dict[str, Any]]]
"""Gives what each rank of a case showed, see `simulate.Seen`."""

ALONE = [(method, "llava", 1) for method in METHODS]
ALONE += [("dmole", family, 1) for family in FAMILIES if family != "llava"]
TOGETHER = [(method, "llava", 2) for method in METHODS]
QUICK = (("dmole", "llava", 2),)


def cases(*names: Case) -> pytest.MarkDecorator:
    """Run a test for cases, those that are not quick as slow tests."""
    params = [pytest.param(name, id="-".join(map(str, name)), marks=slow(name)) for name in names]
    return pytest.mark.parametrize("case", params)


def slow(name: Case) -> tuple[pytest.MarkDecorator, ...]:
    return () if name in QUICK else (pytest.mark.slow,)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("accelerator")


@pytest.fixture(scope="module")
def seen(request: pytest.FixtureRequest, folder: Path) -> Seen:
    """Simulate all selected cases at once, since each process imports torch and transformers."""
    chosen = {
        item.callspec.params["case"]
        for item in request.session.items
        if item.path == request.path and hasattr(item, "callspec")
    }
    chosen |= {(method, family, 0) for method, family, _ in chosen & {*COMPARED}}
    environment = {**os.environ, "PYTHONPATH": f"{HERE.parents[1]}{os.pathsep}{HERE.parent}"}
    words = [str(HERE / "simulate.py"), str(folder), json.dumps(sorted(chosen))]
    ended = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, env=environment
    )
    assert ended.returncode == 0, ended.stderr[-2000:]

    def of(case: Case) -> list[dict[str, Any]]:
        files = [folder / f"{name_of(case)}_rank{rank}.json" for rank in range(max(case[2], 1))]
        return [json.loads(file.read_text(encoding="utf-8")) for file in files]

    return of


def name_of(case: Case) -> str:
    return "_".join(map(str, case))


@cases(*ALONE)
def test_a_run_alone_keeps_tensors_on_its_device_and_hardly_waits(case: Case, seen: Seen) -> None:
    (found,) = seen(case)
    assert found["error"] == ""
    assert bool(found["steps"]) == (case[0] != "zero_shot")
    for waits in found["steps"]:
        assert sum(waits.values()) <= 3, waits
    assert found["decode"] == {}


@cases(*TOGETHER)
def test_ranks_exchange_tensors_of_the_device_alone(case: Case, seen: Seen) -> None:
    for found in seen(case):
        assert found["error"] == ""
        assert [line for line in found["collectives"] if " of host at " in line] == []
        # outside of any line: the gradients, from the thread of the backward pass
        assert ("allreduce_ of device at " in found["collectives"]) == (case[0] != "zero_shot")


COMPARED = (("dmole", "gemma3", 1), ("dmole", "qwen2_5_vl", 1), ("moe_cl", "llava", 1))


@cases(*COMPARED)
def test_a_run_finds_what_it_finds_on_the_cpu(case: Case, seen: Seen, folder: Path) -> None:
    """Operators of a device take other paths, so that sums may differ in their last bits."""
    assert seen((*case[:2], 0))[0]["error"] == ""
    runs = [folder / name_of((*case[:2], ranks)) / "run" for ranks in (1, 0)]
    ours, theirs = (next(run.glob("*/version_0")) for run in runs)
    for name in ("evaluation_matrix.csv", "routing.csv"):
        assert (ours / name).read_text() == (theirs / name).read_text()
    assert _selected(ours) == _selected(theirs)
    files = sorted(path.relative_to(theirs) for path in theirs.glob("experts/*/*.safetensors"))
    assert files
    for file in files:
        experts = [load_file(run / file) for run in (ours, theirs)]
        assert_close(*experts, rtol=1e-3, atol=1e-4)


def _selected(run: Path) -> list[tuple[str, str]]:
    with (run / "allocation.csv").open(newline="", encoding="utf-8") as file:
        return [(row["unit"], row["rank"]) for row in csv.DictReader(file)]
