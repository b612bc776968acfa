"""The model stays on its device from the first phase on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_model_moves_once_and_a_stage_leaves_no_optimizer(tmp_path: Path) -> None:
    script = Path(__file__).with_name("module_moves.py")
    ended = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found == {"moves": ["cpu to fake"], "optimizers": [1, [0]]}
