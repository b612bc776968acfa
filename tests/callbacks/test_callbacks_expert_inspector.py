"""The viewer: what it logs in training, and which pictures it draws from others' results."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers.logger import Logger
from torch.testing import assert_close

from dmole.callbacks import EvaluationMatrix, ExpertAllocation, ExpertInspector
from dmole.routing import AutoencoderRouter

World = Any
MakeWorld = Callable[..., World]
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:.*{text}")
    for text in ("does not have many workers", "smaller than the logging interval", "LeafSpec")
] + [pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training")]


class Memory(Logger):
    """Keeps all metrics."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics: list[tuple[dict[str, float], int | None]] = []

    @property
    def name(self) -> str:
        return "memory"

    @property
    def version(self) -> int:
        return 0

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.metrics.append((dict(metrics), step))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


class Scale(Callback):
    """Stands for a curriculum: another factor in each step."""

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        pl_module.stage.update_scale = {"vision": 0.5 + batch_idx}  # type: ignore[union-attr]


def constant(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01)


@pytest.mark.parametrize("first", [0, 1])
def test_learning_rates_are_those_of_the_step_wherever_the_curriculum_stands(
    world: MakeWorld, first: int
) -> None:
    callbacks: list[Callback] = [ExpertInspector(), Scale()]
    built = world(
        *(callbacks[first:] + callbacks[:first]),
        optimizer=constant,
        schedule="constant",
        warmup=0.0,
    )
    memory = Memory()
    built.trainer.loggers, built.trainer.log_every_n_steps = [memory], 1
    built.begin(1)
    built.fit()
    steps = [m for m, _ in memory.metrics if "train/samples_per_second" in m]
    assert [m["learning_rate/language"] for m in steps] == pytest.approx([0.01] * 3)
    assert [m["learning_rate/vision"] for m in steps] == pytest.approx([0.005, 0.015, 0.025])
    assert all(m["train/samples_per_second"] > 0 for m in steps)


def test_a_viewer_counts_nothing_and_changes_no_expert(world: MakeWorld) -> None:
    found = []
    for callbacks in ([ExpertInspector()], []):
        built = world(*callbacks)
        built.begin(1)
        built.fit()
        found.append(built.module.state_dict())
        assert built.state.samples_trained == 0
    assert_close(found[0], found[1], rtol=0, atol=0)


def results(built: World, stage: int) -> None:
    """Fill in what the other callbacks would have found out."""
    matrix = built.state.callback_of(EvaluationMatrix)
    matrix.matrix = np.full((3, 2), np.nan)
    matrix.matrix[: stage + 1] = [[10.0, 20.0], [80.0, 25.0], [70.0, 90.0]][: stage + 1]
    matrix.routing = [(stage, "paint", "paint", 3), (stage, "count", "base", 3)]


def shown(folder: Path) -> set[str]:
    return {path.stem for path in (folder / "figures").glob("*.png")}


def test_before_training_scores_are_logged_and_the_matrix_is_drawn(world: MakeWorld) -> None:
    built = world(EvaluationMatrix(), ExpertAllocation())
    memory = Memory()
    built.trainer.loggers = [memory]
    results(built, 0)
    inspector = ExpertInspector()
    inspector.on_evaluation_end(built.state, built.module)
    assert shown(built.folder) == set()
    inspector.on_sequence_end(built.state, built.module)
    assert shown(built.folder) == {"evaluation_matrix"}
    assert memory.metrics == [({"score/paint": 10.0, "score/count": 20.0}, 0)]


def test_after_a_stage_allocation_and_activation_are_drawn(world: MakeWorld) -> None:
    built = world(EvaluationMatrix(), ExpertAllocation())
    built.state.stage = built.state.plan[0]
    built.state.callback_of(ExpertAllocation).on_stage_start(built.state, built.module)
    results(built, 1)
    inspector = ExpertInspector()
    assert not list(inspector.run_files(built.state, built.module))
    inspector.on_sequence_end(built.state, built.module)
    assert shown(built.folder) == {"evaluation_matrix", "allocation", "expert_activation"}
    for file in inspector.run_files(built.state, built.module):  # lost ones are drawn again
        before = (built.folder / file.name).read_bytes()
        (built.folder / file.name).unlink()
        built.state.put(file)
        assert (built.folder / file.name).read_bytes() == before


def test_losses_of_autoencoders_are_drawn_with_the_routers_threshold(world: MakeWorld) -> None:
    router = AutoencoderRouter(components=2)
    built = world(EvaluationMatrix(), ExpertAllocation(), router=router)
    built.begin(1)
    router.fit("paint", torch.randn(20, 8))
    results(built, 1)
    matrix = built.state.callback_of(EvaluationMatrix)
    matrix.losses = {
        "common": {"count": [math.inf] * 2, "paint": [math.inf] * 2},  # it has no autoencoder
        "paint": {"count": [0.5, 0.6], "paint": [0.1, 0.2]},
    }
    ExpertInspector().on_sequence_end(built.state, built.module)
    assert "autoencoder_losses" in shown(built.folder)


def test_only_the_first_process_draws(world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    built = world(EvaluationMatrix(), ExpertAllocation())
    results(built, 0)
    monkeypatch.setattr(type(built.state), "is_global_zero", False)
    ExpertInspector().on_sequence_end(built.state, built.module)
    assert shown(built.folder) == set()
