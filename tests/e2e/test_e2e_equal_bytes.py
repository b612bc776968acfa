"""Equal runs in two processes write equal files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_runs import FitWords

DIFFERENT = ("config.yaml", "timing.json", "report.html", "events.out.tfevents", "checkpoints/")
"""Files with the folder, with times or with a random identifier."""


def contents(run: Path) -> dict[str, bytes]:
    files = {path.relative_to(run).as_posix(): path for path in run.rglob("*") if path.is_file()}
    return {n: path.read_bytes() for n, path in files.items() if not n.startswith(DIFFERENT)}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dmole", "moe_cl", "branchlora"])
def test_two_processes_write_the_same_bytes(
    fit_words: FitWords, tmp_path: Path, method: str
) -> None:
    found = []
    for seed in ("1", "2"):
        root = tmp_path / seed
        words = fit_words(root, "--config", f"methods/{method}.yaml", "--trainer.name", "run")
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run(
            [sys.executable, "-m", "dmole", *words], env=environment, check=True, timeout=600
        )
        found.append(contents(root / "run" / "version_0"))
    ours, theirs = found
    assert ours.keys() == theirs.keys()
    assert {"digests.json", "metrics.json", "figures/evaluation_matrix.png"} < ours.keys()
    assert any(name.endswith(".safetensors") for name in ours)
    assert [name for name in ours if ours[name] != theirs[name]] == []
