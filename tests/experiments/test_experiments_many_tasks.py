"""The measurement of many tasks: what it reads off a run, and that each task adds few files."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.many_tasks import measure


@pytest.mark.slow
def test_each_task_adds_few_files_and_each_expert_is_written_once(tmp_path: Path) -> None:
    files = {}
    for count in (2, 3):
        rows = measure(count, 4, 2, tmp_path / str(count))
        assert [row["stage"] for row in rows] == list(range(count + 2))
        for row in rows:
            parts = sum(row[name] for name in ("train", "router", "evaluate", "other"))
            assert row["cpu_seconds"] == pytest.approx(parts, abs=0.01)
        (run,) = (tmp_path / str(count)).glob("*/*")
        files[count] = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    new = [name for name in files[3] - files[2] if not name.startswith("events")]
    kinds = [name.partition("/")[0] for name in new if "task02" in name]
    assert {
        kind: kinds.count(kind) for kind in ("experts", "router", "predictions", "figures")
    } == {
        "experts": 2,
        "router": 1,
        "predictions": 0,
        "figures": 0,
    }
    assert len(new) <= 7
    assert "predictions/stage_3.jsonl" in new
    assert len([name for name in files[3] if name.startswith("checkpoints/experts/")]) == 2
    assert len([name for name in files[3] if name.startswith("events")]) == 1
