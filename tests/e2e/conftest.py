"""Sequences that are learned in a second: two tasks of 8 samples, no figures."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from no_figures import NoFigures
from run_digests import run_digests

from dmole.allocation import Allocator, SensitivityAllocator
from dmole.callbacks import Curriculum
from dmole.cli.main import main
from dmole.data import Task
from dmole.datamodule import ContinualDataModule
from dmole.models import PretrainedBackbone
from dmole.module import ContinualModule
from dmole.routing import AutoencoderRouter, Router
from dmole.streams.stream import Stream
from dmole.trainer import ContinualTrainer


def small_task(name: str, train_size: int = 8, test_size: int = 4, **options: Any) -> Task:
    return Task(
        name,
        train=f"synthetic://{name}/train?size={train_size}",
        test=f"synthetic://{name}/test?size={test_size}",
        max_new_tokens=3,
        **options,
    )


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
            optimizer=partial(torch.optim.AdamW, lr=5e-3),
            seed=self.seed,
            **self.model,
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
            enable_progress_bar=False,
            **self.trainer,
        )
        return Sequenced(trainer, module, data)


@pytest.fixture(scope="session")
def recipe() -> type[Recipe]:
    return Recipe


@pytest.fixture(scope="session")
def plain_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an uninterrupted small run with seed 0."""
    torch.manual_seed(0)
    return Recipe().build(tmp_path_factory.mktemp("plain")).fit()


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


@pytest.fixture(scope="session")
def small_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config that shrinks quickstart.yaml to seconds."""
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def fit_words(small_config: Path) -> Callable[..., list[str]]:
    """Return the command line of the shrunken quickstart; the verb and more words may be given."""

    def words(root: Path, *more: str, verb: str = "fit") -> list[str]:
        configs = ["--config", "quickstart.yaml", "--config", str(small_config)]
        return [verb, *configs, "--trainer.default_root_dir", str(root), *more]

    return words


@pytest.fixture(scope="session")
def quick_run(
    tmp_path_factory: pytest.TempPathFactory, fit_words: Callable[..., list[str]]
) -> Path:
    """Run folder that the shrunken quickstart leaves when started as a user would."""
    root = tmp_path_factory.mktemp("quick")
    assert main(fit_words(root)) == 0
    return root / "small" / "version_0"


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="session")
def rows() -> Callable[[Path], list[dict[str, str]]]:
    return read_csv


@pytest.fixture(scope="session")
def digests() -> Callable[[Path], dict[str, str]]:
    return run_digests


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


@pytest.fixture(scope="session")
def processes_of() -> Callable[[Path], list[str]]:
    return find_processes
