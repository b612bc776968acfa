"""A sequence before its first stage, on the tiny model: real objects, nothing trained yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, Trainer

from dmole.allocation import UniformAllocator
from dmole.callbacks import TrainingRouting
from dmole.data import Task
from dmole.datamodule import ContinualDataModule
from dmole.models import PretrainedBackbone
from dmole.module import ContinualModule
from dmole.routing import OracleRouter
from dmole.run.board import RunBoard
from dmole.run.checkpoint_file import AtomicCheckpointIO
from dmole.run.context import StageContext
from dmole.run.state import SequenceState
from dmole.streams.stream import SequentialStream


@dataclass
class World:
    """The objects that a callback of a sequence works with.

    Lightning's own trainer stands in for the package's, so that each test runs one fit at most.
    """

    trainer: Trainer
    state: SequenceState
    module: ContinualModule
    data: ContinualDataModule

    @property
    def folder(self) -> Path:
        return self.state.run_dir

    def begin(self, index: int) -> None:
        """Place the experts of all stages up to one, and make it the current stage."""
        for stage in self.state.plan[:index]:
            for name in reversed(stage.experts):
                if name not in self.module.library.names:
                    self.place(name)
        self.state.stage = self.state.plan[index - 1]
        self.data.set_stage(self.state.stage)
        self.module.begin_stage(StageContext.of(self.state.stage, epochs=1))

    def place(self, name: str) -> None:
        module = self.module
        first = not module.library.names
        module.add_expert(module.allocator.allocate(name, module.units(), None, first))

    def fit(self, ckpt_path: Path | None = None) -> None:
        """Train the current stage as the package's trainer would."""
        with self.state.timed("train"):
            self.trainer.fit(
                self.module, datamodule=self.data, ckpt_path=ckpt_path, weights_only=True
            )


MakeWorld = Callable[..., World]


def make_world(
    folder: Path,
    *callbacks: Callback,
    sizes: Sequence[int] = (6, 6),
    test_size: int = 3,
    stream: Any = None,
    **module: Any,
) -> World:
    """Return a sequence of two tasks before its first stage."""
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        callbacks=[TrainingRouting(), *callbacks],
        plugins=[AtomicCheckpointIO()],
        max_epochs=1,
        enable_checkpointing=any(c.state_key == "StageCheckpoint" for c in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    board = RunBoard(folder.parent, name="", version=folder.name)
    state = SequenceState(trainer, board, stream or SequentialStream())
    trainer.sequence = state  # type: ignore[attr-defined]
    parts = {"allocator": UniformAllocator(rank=2), "router": OracleRouter()} | module
    built = ContinualModule(PretrainedBackbone("tiny"), **parts)
    tasks = [
        Task(
            name,
            train=f"synthetic://{name}/train?size={size}",
            test=f"synthetic://{name}/test?size={test_size}",
            max_new_tokens=2,
        )
        for name, size in zip(("paint", "count"), sizes, strict=True)
    ]
    data = ContinualDataModule(tasks, batch_size=2, eval_batch_size=2)
    data.attach_processor(built.backbone.processor, built.backbone.context_length)
    state.data = data
    stages = state.stream.stages(data.training_task_names)
    state.plan = [replace(stage, common=built.router.common) for stage in stages]
    return World(trainer, state, built, data)


@pytest.fixture
def world(tmp_path: Path) -> MakeWorld:
    """Return a function that makes a sequence whose run folder is the test's folder."""

    def make(*callbacks: Callback, **options: Any) -> World:
        return make_world(tmp_path, *callbacks, **options)

    return make
