"""A step makes the host wait for the device twice at most, whatever the number of experts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "sizes", [("1", "32"), pytest.param(("1", "8", "32"), marks=pytest.mark.slow)]
)
def test_a_step_waits_twice_at_most_and_a_decoded_token_never(sizes: tuple[str, ...]) -> None:
    script = Path(__file__).with_name("sync_counts.py")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, str(script), *sizes], capture_output=True, text=True, env=environment
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    found = json.loads(ended.stdout)
    assert tuple(found) == sizes
    for size, waits in found.items():
        lines = "\n".join(waits["step"])
        # samples are new: their embeddings go to the host, where the router is
        assert sum(waits["step"].values()) == (1 if size == "1" else 2), lines
        assert "steps/finite.py" in lines  # whether the step may be made
        assert waits["prefill"] == waits["decode"] == {}
