"""The scripts of configs/cluster start `dmole fit` with the right words."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "configs" / "cluster"


def started(script: str, program: str, folder: Path, **variables: str) -> list[str]:
    """Return the words that a script hands to a program, with one in its place that lists them."""
    fake = folder / program
    fake.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", **variables}
    done = subprocess.run(
        ["bash", str(SCRIPTS / script), "--config", "coin.yaml"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("variables", "command"),
    [
        ({}, ["dmole"]),
        (
            {"CONTAINER": "dmole.sif", "BIND": "/data"},
            ["apptainer", "run", "--nv", "--bind", "/data", "dmole.sif"],
        ),
    ],
)
def test_slurm_starts_the_run_in_a_container_or_without(
    variables: dict[str, str], command: list[str], tmp_path: Path
) -> None:
    job = {"SLURM_NNODES": "8", "SLURM_NTASKS_PER_NODE": "4", "CONTAINER": "", **variables}
    words = started("slurm.sh", "srun", tmp_path, **job)
    assert words[1 : len(command) + 4] == [*command, "fit", "--config", "coin.yaml"]
    assert words[words.index("--trainer.num_nodes") + 1] == "8"
    assert words[words.index("--trainer.devices") + 1] == "4"


@pytest.mark.parametrize(("script", "program"), [("slurm.sh", "srun"), ("torchrun.sh", "torchrun")])
def test_the_strategy_is_left_to_the_configs(script: str, program: str, tmp_path: Path) -> None:
    words = started(script, program, tmp_path, SLURM_NNODES="1", SLURM_NTASKS_PER_NODE="1")
    assert "fit" in words
    assert "--trainer.strategy" not in words
