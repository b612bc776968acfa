"""What a stage of a run costs by the number of tasks learned before it.

    python -m experiments.many_tasks --tasks 50 --output docs/results/many_tasks.csv

One run of many tiny tasks on the embedded model, in one thread. It prints the CPU seconds of each
stage by phase (``other`` is what a stage spends outside of its phases: checkpoints and the check of
all files), the peak resident memory of the stage, and the bytes that it has written. The evaluation
of a stage grows with the number of tasks by itself, so ``learning`` leaves it out.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from dmole.allocation import SensitivityAllocator
from dmole.callbacks import ContinualCallback
from dmole.data import Task
from dmole.datamodule import ContinualDataModule
from dmole.models import PretrainedBackbone
from dmole.module import ContinualModule
from dmole.routing import AutoencoderRouter
from dmole.run.state import SequenceState
from dmole.storage.files import write_csv
from dmole.trainer import ContinualTrainer

KINDS = ("paint", "count", "read", "find", "texture")
PHASES = ("train", "router", "evaluate")


class MeasuredTrainer(ContinualTrainer):
    """A trainer that records the CPU time of each phase."""

    phases: dict[tuple[int, str], float]

    def _run_phase(self, module: ContinualModule, phase: str) -> None:
        begin = time.process_time()
        super()._run_phase(module, phase)
        self.phases[self.sequence.stage.index, phase] = time.process_time() - begin


class StageMeter(ContinualCallback):
    """Records CPU time, peak memory and written bytes at the end of each stage's evaluation."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_evaluation_end(self, state: SequenceState, module: ContinualModule) -> None:
        """Add the row of a stage."""
        self.rows.append(
            {
                "stage": state.stage.index,
                "cpu": time.process_time(),
                "peak_mib": status("VmHWM") / 2**10,
                "written": written(),
            }
        )
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak


def status(key: str) -> int:
    """Return an entry of this process's status in KiB."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith(key))


def written() -> int:
    """Return the bytes that this process has passed to the system to write."""
    text = Path("/proc/self/io").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("wchar"))


def measure(count: int, train: int, test: int, folder: Path) -> list[dict[str, Any]]:
    """Learn many tiny tasks and return one row for each stage and one for the end of the run.

    Args:
        count: Number of tasks.
        train: Training samples of a task.
        test: Test samples of a task.
        folder: Receives the run.
    """
    tasks = [
        Task(
            f"task{index:02}",
            train=f"synthetic://{KINDS[index % len(KINDS)]}/train?size={train}",
            test=f"synthetic://{KINDS[index % len(KINDS)]}/test?size={test}",
            max_new_tokens=3,
        )
        for index in range(count)
    ]
    module = ContinualModule(
        PretrainedBackbone("tiny"), SensitivityAllocator(), AutoencoderRouter()
    )
    meter = StageMeter()
    trainer = MeasuredTrainer(
        default_root_dir=str(folder),
        callbacks=[meter],
        accelerator="cpu",
        enable_progress_bar=False,
    )
    trainer.phases = {}
    start = {"cpu": time.process_time(), "peak_mib": status("VmRSS") / 2**10, "written": written()}
    print(f"at the start: {start['peak_mib']:.0f} MiB", flush=True)
    trainer.fit(module, datamodule=ContinualDataModule(tasks, batch_size=4))
    meter.rows.append(
        {
            "stage": count + 1,  # the end of the run
            "cpu": time.process_time(),
            "peak_mib": status("VmHWM") / 2**10,
            "written": written(),
        }
    )
    files = [path for path in trainer.run_dir.rglob("*") if path.is_file()]
    events = [path for path in files if path.name.startswith("events.out.tfevents")]
    summary = {
        "files": len(files),
        "bytes": sum(path.stat().st_size for path in files),
        "events_files": len(events),
        "events_bytes": sum(path.stat().st_size for path in events),
        "last_ckpt_bytes": (trainer.run_dir / "checkpoints" / "last.ckpt").stat().st_size,
        "cpu": meter.rows[-1]["cpu"] - start["cpu"],
        "peak_above_start_mib": max(row["peak_mib"] for row in meter.rows) - start["peak_mib"],
    }
    print(json.dumps({key: round(value, 1) for key, value in summary.items()}))
    return list(_rows(start, meter.rows, trainer.phases))


def _rows(
    start: dict[str, float],
    rows: list[dict[str, float]],
    phases: dict[tuple[int, str], float],
) -> Iterator[dict[str, Any]]:
    """Yield the rows of the table from the readings at the ends of the stages."""
    before = start
    for row in rows:
        spent = {phase: phases.get((int(row["stage"]), phase), 0.0) for phase in PHASES}
        total = row["cpu"] - before["cpu"]
        yield {
            "stage": int(row["stage"]),
            "cpu_seconds": round(total, 3),
            **{phase: round(seconds, 3) for phase, seconds in spent.items()},
            "other": round(total - sum(spent.values()), 3),
            "learning": round(total - spent["evaluate"], 3),
            "peak_mib": round(row["peak_mib"]),
            "written_mb": round((row["written"] - before["written"]) / 1e6, 2),
        }
        before = row


def main() -> None:
    """Measure and print one row for each stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=50)
    parser.add_argument("--train", type=int, default=8)
    parser.add_argument("--test", type=int, default=4)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(options.tasks, options.train, options.test, Path(folder))
    print(",".join(rows[0]))
    for row in rows:
        print(",".join(str(value) for value in row.values()))
    if options.output is not None:
        write_csv(options.output, list(rows[0]), rows)


if __name__ == "__main__":
    main()
