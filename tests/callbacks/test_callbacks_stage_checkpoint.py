"""Checkpoints within a stage: when they are made, what is in them, how training resumes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from dmole.callbacks import StageCheckpoint, default_callbacks
from dmole.run import Interrupted
from dmole.run.checkpoint_file import read_checkpoint
from dmole.trainer import ContinualTrainer

World = Any
MakeWorld = Callable[..., World]
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:.*{text}")
    for text in ("does not have many workers", "smaller than the logging interval", "LeafSpec")
] + [pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training")]


class Watch(Callback):
    """Notes after each step whether a checkpoint is there; may end the run."""

    def __init__(self, request_at: int = -1, fail_at: int = -1) -> None:
        self.request_at, self.fail_at = request_at, fail_at
        self.losses: dict[int, float] = {}
        self.saved: list[int] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.losses[trainer.global_step] = float(outputs["loss"])
        if trainer.global_step == self.fail_at:
            raise RuntimeError("killed")
        if trainer.global_step == self.request_at:
            trainer.sequence.interruption.signum = 15  # type: ignore[attr-defined]

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.saved.append(trainer.global_step)


def file_of(built: World) -> Path:
    return Path(built.folder / "checkpoints" / "stage.ckpt")


def trained(built: World, index: int = 1, ckpt_path: Path | None = None) -> World:
    built.begin(index)
    built.fit(ckpt_path)
    return built


@pytest.mark.parametrize(("every", "saved"), [(0, []), (1, [1, 2, 3, 4]), (2, [2, 4]), (9, [])])
def test_a_checkpoint_is_made_every_so_many_steps_but_not_after_the_last(
    world: MakeWorld, every: int, saved: list[int]
) -> None:
    watch = Watch()
    trained(world(StageCheckpoint(every), watch, sizes=(10, 6)))  # five steps
    assert watch.saved == saved


def test_samples_are_counted_whoever_else_watches(world: MakeWorld) -> None:
    built = trained(world(StageCheckpoint(0), sizes=(5, 6)))
    assert built.state.samples_trained == 5


def test_gradients_that_are_being_accumulated_are_not_saved(world: MakeWorld) -> None:
    watch = Watch()
    built = world(StageCheckpoint(1), watch, sizes=(10, 6))
    built.trainer.accumulate_grad_batches = 2
    trained(built)
    assert watch.saved == [1, 2]


def test_a_request_to_end_saves_the_step_and_ends(world: MakeWorld) -> None:
    watch = Watch(request_at=2)
    built = world(StageCheckpoint(0), watch, sizes=(10, 6))
    with pytest.raises(Interrupted):
        trained(built)
    assert watch.saved == [2]
    assert read_checkpoint(file_of(built))["sequence_stage"]["samples"] == 4


def test_a_checkpoint_holds_the_experts_in_training_and_no_other(world: MakeWorld) -> None:
    built = world(StageCheckpoint(1), Watch(fail_at=2), sizes=(6, 10))
    with pytest.raises(RuntimeError, match="killed"):
        trained(built, index=2)
    content = read_checkpoint(file_of(built))
    assert {key.split("/")[0] for key in content["state_dict"]} == {"count"}
    assert list(content["architecture"]) == ["count"]
    assert (content["stage"], content["world_size"]) == (2, 1)
    assert content["run"] == built.state.run_id
    assert len(content["sequence_stage"]["ranks"]) == 1


def test_training_resumes_at_the_saved_step_to_the_bit(world: MakeWorld) -> None:
    options = {"sizes": (10, 6), "dropout": 0.2}
    whole = Watch()
    straight = trained(world(StageCheckpoint(1), whole, **options))
    cut = world(StageCheckpoint(1), Watch(fail_at=4), **options)
    with pytest.raises(RuntimeError, match="killed"):
        trained(cut)
    torch.manual_seed(99)  # another process has drawn other numbers
    watch = Watch()
    resumed = trained(world(StageCheckpoint(1), watch, **options), ckpt_path=file_of(cut))
    assert watch.losses == {step: whole.losses[step] for step in (4, 5)}
    assert resumed.state.samples_trained == 10
    assert resumed.state.clock.laps[0].seconds > 0
    for key, tensor in straight.module.state_dict().items():
        assert torch.equal(resumed.module.state_dict()[key], tensor), key


def test_a_restored_state_that_no_step_used_is_dropped(world: MakeWorld) -> None:
    callback, built = StageCheckpoint(1), world()
    content = {
        "sequence_stage": {"ranks": [], "samples": 0, "seconds": 0.0},
        "loops": {"fit_loop": {}},
        "optimizer_states": [{}],
        "lr_schedulers": [{}],
    }
    callback.on_load_checkpoint(built.trainer, built.module, content)
    callback.on_stage_trained(built.state, built.module)
    callback.on_train_batch_start(built.trainer, built.module, None, 0)  # restores nothing


def test_the_checkpoint_comes_last_wherever_it_is_given(tmp_path: Path) -> None:
    given = StageCheckpoint(7)
    trainer = ContinualTrainer(
        default_root_dir=str(tmp_path), callbacks=[given, Watch()], accelerator="cpu"
    )
    found = [cb for cb in trainer.sequence.callbacks if isinstance(cb, StageCheckpoint)]
    assert found == [given]  # it replaces the standard one
    assert trainer.sequence.callbacks[-1] is given


def test_another_kind_of_checkpoint_is_refused_in_one_line() -> None:
    from lightning.pytorch.callbacks import ModelCheckpoint

    with pytest.raises(ValueError, match="a sequence is saved without ModelCheckpoint") as caught:
        default_callbacks(
            [ModelCheckpoint()],
            progress_bar=False,
            checkpoint_every_n_steps=1,
            case_images=0,
            report=False,
        )
    assert "\n" not in str(caught.value)


def test_a_negative_number_of_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="every_n_steps must not be negative, got -1"):
        StageCheckpoint(-1)
