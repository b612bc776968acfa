"""Steps make the host wait for the device twice at most; terms upload their state once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def measured(*sizes: str) -> dict[str, Any]:
    script = Path(__file__).with_name("sync_counts.py")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, str(script), *sizes], capture_output=True, text=True, env=environment
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


SIZES = ("1", "8", "32")
"""Numbers of experts."""


@pytest.mark.slow
def test_a_step_waits_twice_at_most_and_a_decoded_token_never_and_terms_upload_once() -> None:
    found = measured(*SIZES)
    steps = found["steps"]
    assert tuple(steps) == SIZES
    for size, waits in steps.items():
        lines = "\n".join(waits["step"])
        # samples are new: their embeddings go to the host, where the router is
        assert sum(waits["step"].values()) == (1 if size == "1" else 2), lines
        assert "steps/finite.py" in lines  # whether the step may be made
        assert waits["prefill"] == waits["decode"] == {}
    for term in found["terms"].values():  # two steps of two micro-batches
        assert term["waits"] == [0, 0, 0, 0]
        first, *others = term["uploads"]
        assert first >= term["state"] > 10_000
        assert max(others) < 100  # the weights of the micro-batch
    past = found["past"]
    assert past["waits"] == [0, 0, 0, 0]
    for name, uploaded in zip(("task0", "task1", None, "task0"), past["uploads"], strict=True):
        expected = past["sizes"].get(name, 0)
        assert 0 <= uploaded - expected < 100, past  # and the weights of the batch
