"""Sequences that are learned in a second: two tasks of 8 samples, no figures."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pytest
import torch
from no_figures import NoFigures

from dmole.allocation import Allocator, SensitivityAllocator
from dmole.callbacks import Curriculum
from dmole.data import Task
from dmole.data.batch import Batch
from dmole.datamodule import ContinualDataModule
from dmole.models import PretrainedBackbone
from dmole.models.embedder import Embedder, sample_keys
from dmole.module import ContinualModule
from dmole.routing import AutoencoderRouter, Router
from dmole.streams.stream import Stream
from dmole.trainer import ContinualTrainer


class FitWords(Protocol):
    """Gives the command line of the shrunken quickstart."""

    def __call__(self, root: Path, *more: str, verb: str = "fit") -> list[str]:
        """Return the words of a verb whose runs go to a folder, and more words."""


def small_task(name: str, train_size: int = 8, test_size: int = 4, **options: Any) -> Task:
    return Task(
        name,
        train=f"synthetic://{name}/train?size={train_size}",
        test=f"synthetic://{name}/test?size={test_size}",
        max_new_tokens=3,
        **options,
    )


def one_answer(folder: Path, name: str, answer: str) -> Task:
    """Return a task whose every answer is the same word, which is learned in a few steps."""
    turns = [{"from": "human", "value": f"say {name}"}, {"from": "gpt", "value": answer}]
    items = [{"id": str(index), "conversations": turns} for index in range(8)]
    file = folder / f"{name}.json"
    file.write_text(json.dumps(items))
    return Task(name, train=str(file), test=str(file), max_new_tokens=2, epochs=4)


@dataclass
class Sequenced:
    """The three objects of a run; ``fit`` starts it."""

    trainer: ContinualTrainer
    module: ContinualModule
    data: ContinualDataModule

    def fit(self, ckpt_path: Path | None = None) -> Path:
        ckpt = None if ckpt_path is None else str(ckpt_path)
        self.trainer.fit(self.module, datamodule=self.data, ckpt_path=ckpt)
        return self.trainer.run_dir


@dataclass
class Recipe:
    """What a small run is made of; every part can be replaced."""

    tasks: Sequence[str | Task] = ("paint", "count")
    stream: Stream | None = None
    allocator: Callable[[], Allocator] = SensitivityAllocator
    router: Callable[[], Router] = AutoencoderRouter
    seed: int = 0
    devices: int = 1
    callbacks: Sequence[Any] = ()
    curriculum: str = "static"
    model: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)

    def build(self, folder: Path) -> Sequenced:
        tasks = [small_task(task) if isinstance(task, str) else task for task in self.tasks]
        module = ContinualModule(
            PretrainedBackbone("tiny"),
            self.allocator(),
            self.router(),
            seed=self.seed,
            **{"optimizer": partial(torch.optim.AdamW, lr=5e-3)} | self.model,
        )
        data = ContinualDataModule(
            tasks, seed=self.seed, **{"batch_size": 4, "eval_batch_size": 8} | self.data
        )
        trainer = ContinualTrainer(
            default_root_dir=str(folder),
            stream=self.stream,
            callbacks=[Curriculum(self.curriculum), NoFigures(), *self.callbacks],
            accelerator="cpu",
            devices=self.devices,
            **{"enable_progress_bar": False} | self.trainer,
        )
        return Sequenced(trainer, module, data)


SMALL = {
    "trainer": {"name": "small", "enable_progress_bar": False, "log_every_n_steps": 1},
    "data": {
        "batch_size": 8,
        "tasks": [
            {
                "name": name,
                "train": f"synthetic://{name}/train?size=32",
                "test": f"synthetic://{name}/test?size=8",
                "max_new_tokens": 4,
            }
            for name in ("paint", "count")
        ],
    },
}
"""What shrinks quickstart.yaml to seconds."""


NO_FIGURES = ("--trainer.callbacks+=no_figures.NoFigures", "--trust_classes", "no_figures")
"""Spares a run of the command line its pictures, which take two fifths of its time."""


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def find_processes(folder: Path) -> list[str]:
    """Return the command lines of processes that name a folder."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().decode().split("\0")
        except (OSError, ValueError):
            continue  # no process, or gone by now
        if entry.name.isdigit() and any(str(folder) in word for word in words):
            found.append(" ".join(words))
    return found


@contextmanager
def embedded() -> Iterator[list[str]]:
    """Yield a list that gets the key of every sample that is embedded."""
    seen: list[str] = []
    embed = Embedder._embed

    def listed(self: Embedder, batch: Batch, counts: torch.Tensor) -> torch.Tensor:
        seen.extend(sample_keys(batch))
        return embed(self, batch, counts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Embedder, "_embed", listed)
        yield seen


@contextmanager
def umask(mask: int) -> Iterator[None]:
    """Set the permissions that new files lack for the body of a ``with`` statement."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)
