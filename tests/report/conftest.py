"""Run folders as finished runs leave them, made by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dmole.metrics import summarize, write_matrix

NAMES = ["color", "count"]
MakeRun = Callable[..., Path]


def _oracle(matrix: list[list[float]]) -> list[list[float]]:
    """Return each task's score at its own stage, kept ever after."""
    rows = [[math.nan, math.nan], [matrix[-1][0], math.nan], [matrix[-1][0], matrix[-1][1]]]
    return rows[: len(matrix)]


def _make_run(
    folder: Path,
    name: str,
    matrix: list[list[float]],
    seed: int = 0,
    *,
    config: dict[str, Any] | None = None,
    metrics: dict[str, Any] | None = None,
    scope: Any = "all",
) -> Path:
    """Write a run folder; ``config`` and ``metrics`` add to what it holds."""
    oracle = _oracle(matrix)
    write_matrix(folder / "evaluation_matrix.csv", matrix, NAMES)
    write_matrix(folder / "oracle_matrix.csv", oracle, NAMES)
    content = summarize(matrix, NAMES, scope) | {"oracle": summarize(oracle, NAMES, scope)}
    (folder / "metrics.json").write_text(json.dumps(content | (metrics or {})))
    parameters: dict[str, Any] = {
        "base": 50_000,
        "total": 54_000,
        "active": 51_500.0,
    }
    if len(matrix) > 1:
        parameters["trainable"] = {"color": 1000, "count": 3000}
    timing = {"seconds": 100.0 + seed, "parameters": parameters}
    (folder / "timing.json").write_text(json.dumps(timing))
    settings = {"seed_everything": seed, "trainer": {"name": name}} | (config or {})
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return folder


@pytest.fixture
def make_run() -> MakeRun:
    return _make_run


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Two seeds of one method and one run of another."""
    return [
        _make_run(tmp_path / "d" / "version_0", "dmole", [[0, 0], [90, 5], [88, 70]], 1),
        _make_run(tmp_path / "d" / "version_1", "dmole", [[0, 0], [92, 5], [92, 72]], 2),
        _make_run(tmp_path / "s" / "version_0", "seq-ft", [[0, 0], [90, 5], [40, 75]], 1),
    ]
