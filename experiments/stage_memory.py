"""Memory of a stage by the number of tasks learned before it.

Every process reads and evaluates the same tasks; only the number of stages differs. Each run is a
separate process with one thread and the embedded model. The measured value is the peak resident
memory during the last stage, from its allocation to its evaluation, without the parameters of the
experts. The other columns count the cached embeddings and answers of samples.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dmole.allocation import SensitivityAllocator
from dmole.callbacks import ContinualCallback, EvaluationMatrix, ExpertInspector
from dmole.data import Task
from dmole.datamodule import ContinualDataModule
from dmole.models import PretrainedBackbone
from dmole.module import ContinualModule
from dmole.routing import AutoencoderRouter
from dmole.run.state import SequenceState
from dmole.streams.stream import SequentialStream, Stage, Stream
from dmole.trainer import ContinualTrainer

TASKS, STAGES, TRAIN, TEST = 32, (2, 8, 32), 16, 2


class FirstStages(Stream):
    """A stream that learns only the first tasks."""

    def __init__(self, count: int) -> None:
        self.count = count

    def stages(self, task_names: Sequence[str]) -> list[Stage]:
        """Return the first stages of a sequential stream."""
        return SequentialStream().stages(task_names)[: self.count]


class StagePeak(ContinualCallback):
    """Records the peak resident memory of each stage, in MiB."""

    def __init__(self) -> None:
        self.peaks: list[float] = []

    def on_evaluation_end(self, state: SequenceState, module: ContinualModule) -> None:
        """Read the peak and reset it."""
        status = Path("/proc/self/status").read_text(encoding="ascii")
        line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        self.peaks.append(int(line.split()[1]) / 2**10)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak


class NoFigures(ExpertInspector):
    """Omits the figures, whose memory would hide the rest."""

    def on_sequence_end(self, state: SequenceState, module: ContinualModule) -> None:
        """Draw nothing."""


def measure(stages: int, answers: Any) -> None:
    torch.set_num_threads(1)
    tasks = [
        Task(
            f"task{i}",
            train=f"synthetic://paint/train?size={TRAIN}",
            test=f"synthetic://paint/test?size={TEST}",
            max_new_tokens=2,
        )
        for i in range(TASKS)
    ]
    module = ContinualModule(
        PretrainedBackbone("tiny"), SensitivityAllocator(), AutoencoderRouter()
    )
    peak = StagePeak()
    with tempfile.TemporaryDirectory() as folder:
        trainer = ContinualTrainer(
            default_root_dir=folder,
            stream=FirstStages(stages),
            callbacks=[peak, NoFigures()],
            accelerator="cpu",
            enable_progress_bar=False,
        )
        trainer.fit(module, datamodule=ContinualDataModule(tasks, batch_size=4))
    experts = sum(map(module.library.count, module.library.names)) * 4 / 2**20
    table = trainer.sequence.callback_of(EvaluationMatrix)
    answers.put(
        (
            peak.peaks[-1],
            experts,
            peak.peaks[-1] - experts,
            len(module.embedder.cache),
            len(table.answers.state_dict()),
        )
    )


def main() -> None:
    context = multiprocessing.get_context("spawn")  # nothing is inherited
    names = ("stages", "peak MiB", "experts", "rest", "embeddings", "answers")
    print("".join(f"{name:>11}" for name in names))
    for stages in STAGES:
        answers = context.Queue()
        process = context.Process(target=measure, args=(stages, answers))
        process.start()
        total, experts, rest, embeddings, texts = answers.get()
        process.join()
        row = f"{stages:>11}{total:>11.1f}{experts:>11.2f}{rest:>11.1f}{embeddings:>11}{texts:>11}"
        print(row, flush=True)


if __name__ == "__main__":
    main()
