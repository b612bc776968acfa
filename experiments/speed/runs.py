"""Whole runs of the embedded model, each in a process of its own: start, evaluation, boundaries."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from experiments.speed.page import Row
from experiments.speed.timing import Ratio, spread

KINDS = ("paint", "count", "read", "find", "caption")
"""Kinds of synthetic tasks; a run repeats them under other names and with other samples."""
SECTION = "whole runs, tiny"


def runs(starts: int) -> Iterator[Row]:
    """Yield the figures of three kinds of runs.

    Args:
        starts: Starts of the quickstart; the other runs are done once.
    """
    with tempfile.TemporaryDirectory(prefix="dmole_runs_") as folder:
        yield _start(Path(folder), starts)
        yield from _short_run(Path(folder))
        yield from _long_stages(Path(folder))


def _start(folder: Path, starts: int) -> Row:
    """Return the processor seconds of the quickstart up to its first training step."""
    words = ["--first_step", "--config", "quickstart.yaml", "--trainer.default_root_dir"]
    seconds = [_watched([*words, str(folder / str(i))])["seconds"] for i in range(starts)]
    note = f"{starts} starts"
    return Row(
        SECTION, "start to first step of the quickstart, s", "tiny", spread(seconds), 10, note
    )


def _short_run(folder: Path, tasks: int = 9, train: int = 300, test: int = 50) -> Iterator[Row]:
    """Yield how many answers a run generates, and the share of its evaluation."""
    facts, seconds = _fit(folder, "short", tasks, train, test)
    of_run = f"{tasks} tasks of {train} + {test}"
    answers = facts["answers"] / ((tasks + 1) * tasks * test)
    yield Row(SECTION, f"answers generated / (T + 1) T N, {of_run}", "tiny", _one(answers), 0.30)
    share = seconds["evaluate"] / (seconds["train"] + seconds["router"] + seconds["evaluate"])
    yield Row(SECTION, f"evaluation / run, {of_run}", "tiny", _one(share), 0.15)


def _long_stages(folder: Path, train: int = 2000) -> Iterator[Row]:
    """Yield the share of boundary work beside training."""
    _, seconds = _fit(folder, "long", 2, train, 8)
    training = seconds["train"] - seconds["inside train"]
    boundary = (seconds["router"] + seconds["inside train"]) / training
    what = f"boundary / training, 2 tasks of {train} samples, 1 epoch"
    yield Row(SECTION, what, "tiny", _one(boundary), 0.05)


def _fit(
    folder: Path, name: str, tasks: int, train: int, test: int
) -> tuple[dict[str, Any], Counter[str]]:
    """Learn some tasks; return what the run printed, and its seconds by phase.

    Phases that ran within the phase ``train`` are added as ``inside train``.
    """
    config = folder / f"{name}.yaml"
    sizes = {"train": train, "test": test}
    listed = [
        {
            "name": f"{KINDS[index % len(KINDS)]}{index}",
            **{
                split: f"synthetic://{KINDS[index % len(KINDS)]}/{split}?size={size}&seed={index}"
                for split, size in sizes.items()
            },
            "max_new_tokens": 16,
        }
        for index in range(tasks)
    ]
    config.write_text(yaml.safe_dump({"data": {"tasks": listed}}), encoding="utf-8")
    words = ["--config", "quickstart.yaml", "--config", str(config), "--trainer.name", name]
    facts = _watched([*words, "--trainer.default_root_dir", str(folder)])
    timing = json.loads((folder / name / "version_0" / "timing.json").read_text(encoding="utf-8"))
    seconds: Counter[str] = Counter()
    inner: Counter[int] = Counter()
    for lap in timing["phases"]:  # a phase is listed when it ends
        seconds[lap["phase"]] += lap["seconds"]
        if lap["phase"] in ("embed", "allocate"):
            inner[lap["stage"]] += lap["seconds"]
        elif lap["phase"] == "train":
            seconds["inside train"] += inner[lap["stage"]]
    return facts, seconds


def _watched(arguments: Sequence[str]) -> dict[str, Any]:
    """Run ``dmole fit`` in a process of its own and return what it printed."""
    command = [sys.executable, "-m", "experiments.speed.watched_fit", *arguments]
    done = subprocess.run(
        [*command, "--trainer.enable_progress_bar", "false"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"dmole fit {' '.join(arguments)} failed: {done.stderr[-2000:]}")
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return facts


def _one(value: float) -> Ratio:
    return Ratio(value, value, value)
