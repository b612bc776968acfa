"""Settings that are changed at a resume take effect there, or are refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from cuts import CutAfter, CutError
from run_digests import run_digests
from small_runs import Recipe, Sequenced, small_task
from test_e2e_distributed import expert_tensors

from dmole.allocation import SensitivityAllocator
from dmole.callbacks import ContinualCallback
from dmole.routing import AutoencoderRouter

TASKS = [small_task("paint"), small_task("count", 20)]
"""Stage 1 has 2 steps, stage 2 has 5."""
CUT = 5
"""A step of stage 2; the one before it is saved."""
RECIPE = Recipe(tasks=TASKS, trainer={"checkpoint_every_n_steps": 1})

AdamW, SGD = torch.optim.AdamW, torch.optim.SGD
Change = dict[str, Any]


class Steps(ContinualCallback):
    """Keeps learning rate and samples of every step."""

    def __init__(self) -> None:
        self.rates: dict[int, float] = {}
        self.samples: list[str] = []

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        self.rates[trainer.global_step] = optimizer.param_groups[0]["lr"]

    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, _: int
    ) -> None:
        self.samples += batch.sample_ids


def built(folder: Path, change: Change | None = None, *callbacks: Any) -> Sequenced:
    """Return a run with some settings changed."""
    change = dict(change or {})
    optimizer = change.pop("optimizer", None)
    seeds = {part: change.pop(f"{part}_seed", None) for part in ("data", "module")}
    trainer = RECIPE.trainer | {"accept_changes": bool(change or optimizer or any(seeds.values()))}
    trainer |= change.pop("trainer", {})
    recipe = replace(RECIPE, callbacks=callbacks, **change, **{"trainer": trainer})
    sequence = recipe.build(folder)
    if optimizer is not None:
        sequence.module.make_optimizer = optimizer
    for part, seed in seeds.items():
        if seed is not None:
            getattr(sequence, part).seed = seed
    return sequence


@pytest.fixture(scope="module")
def within(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run that was cut within stage 2."""
    folder = tmp_path_factory.mktemp("within")
    with pytest.raises(CutError):
        built(folder, None, CutAfter(CUT)).fit()
    assert (folder / "dmole" / "version_0" / "checkpoints" / "stage.ckpt").exists()
    return folder


@pytest.fixture(scope="module")
def unchanged(within: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of ``within``, resumed with its own settings."""
    folder = tmp_path_factory.mktemp("unchanged")
    shutil.copytree(within, folder, dirs_exist_ok=True)
    return built(folder).fit(Path("auto"))


@pytest.fixture
def resumed(within: Path, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that resumes the cut run with a change."""

    def resume(change: Change, *callbacks: Any) -> Path:
        shutil.copytree(within, tmp_path, dirs_exist_ok=True)
        return built(tmp_path, change, *callbacks).fit(Path("auto"))

    return resume


def count_of(run: Path) -> dict[str, torch.Tensor]:
    return {k: v for k, v in expert_tensors(run).items() if k.startswith("count/")}


TRAINING: list[tuple[Change, str]] = [
    ({"optimizer": partial(AdamW, lr=1e-9)}, "setting 'optimizer'"),
    ({"optimizer": partial(AdamW, lr=5e-3, weight_decay=5.0)}, "setting 'optimizer'"),
    ({"optimizer": partial(AdamW, lr=5e-3, betas=(0.1, 0.2))}, "setting 'optimizer'"),
    ({"optimizer": partial(AdamW, lr=5e-3, amsgrad=True)}, "setting 'optimizer'"),
    ({"optimizer": partial(SGD, lr=1e-2, momentum=0.9)}, "setting 'optimizer'"),
    ({"model": {"schedule": "constant"}}, "model setting 'schedule'"),
    ({"model": {"warmup": 0.9}}, "model setting 'warmup'"),
    ({"model": {"dropout": 0.5}}, "setting 'dropout'"),
    ({"trainer": {"gradient_clip_val": 1e-4}}, "setting 'trainer.gradient_clip_val'"),
    ({"trainer": {"accumulate_grad_batches": 2}}, "setting 'trainer.accumulate_grad_batches'"),
    ({"trainer": {"limit_train_batches": 4}}, "setting 'limit_train_batches'"),
    ({"trainer": {"precision": "bf16-mixed"}}, "setting 'precision'"),
    ({"data": {"batch_size": 2}}, "setting 'data.batch_size'"),
    ({"data_seed": 7}, "setting 'data.seed'"),
    ({"data": {"group_by_length": False}, "data_seed": 3}, "setting 'data.group_by_length'"),
    ({"curriculum": "off"}, "Curriculum setting 'mode'"),
    ({"tasks": [TASKS[0], small_task("count", 20, epochs=2)]}, "epochs of task count"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("change", "name"), TRAINING, ids=lambda value: str(value)[:60])
def test_a_change_within_a_stage_changes_its_expert(
    change: Change, name: str, resumed: Callable[..., Path], unchanged: Path
) -> None:
    run = resumed(change)
    before, after = count_of(unchanged), count_of(run)
    assert any(not torch.equal(before[key], after[key]) for key in before)
    records = json.loads((run / "metrics.json").read_text())["accepted_changes"]
    assert name in [record["setting"] for record in records]
    assert all(record["from_stage"] == 2 for record in records)
    assert {record.get("from_step") for record in records} == {CUT - 1}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value"), [("beams", 2), ("generation", {"repetition_penalty": 1.3})]
)
def test_a_change_that_concerns_no_training_leaves_the_expert_bit_equal(
    name: str, value: Any, resumed: Callable[..., Path], unchanged: Path
) -> None:
    run = resumed({"model": {name: value}})
    before, after = count_of(unchanged), count_of(run)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    records = json.loads((run / "metrics.json").read_text())["accepted_changes"]
    changed = ["base model's generation", f"model setting {name!r}"]
    assert [record["setting"] for record in records] == changed


@pytest.mark.slow
def test_a_setting_that_can_no_longer_change_is_not_said_to_be_acceptable(
    resumed: Callable[..., Path],
) -> None:
    change = {"router": partial(AutoencoderRouter, std_floor=0.5)}
    for accept in (True, False):
        with pytest.raises(ValueError, match="can no longer take effect") as caught:
            resumed({**change, "trainer": {"accept_changes": accept}})
        assert "another router setting 'std_floor'" in str(caught.value)
        assert "(checkpoint: 1.0; now: 0.5)" in str(caught.value)


def test_another_learning_rate_holds_from_the_next_step_on(
    resumed: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    steps = Steps()
    with caplog.at_level("WARNING", logger="dmole"):
        resumed({"optimizer": partial(AdamW, lr=1e-9)}, steps)
    assert steps.rates
    assert min(steps.rates) == CUT - 1
    assert all(rate < 2e-9 for rate in steps.rates.values())
    text = "another setting 'optimizer' from step 4 on (checkpoint: 'lr', 0.005; now: 'lr', 1e-09)"
    assert f"resuming with {text}" in caplog.text


def test_another_optimizer_says_what_restarts(
    resumed: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING", logger="dmole"):
        resumed({"optimizer": partial(SGD, lr=1e-2)})
    assert (
        "the optimizer is SGD now, it was AdamW: its state (exp_avg, exp_avg_sq, step) restarts"
        in caplog.text
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "batches"),
    [
        pytest.param({"data": {"batch_size": 3}}, [3, 3, 3, 3], marks=pytest.mark.slow),
        pytest.param({"data_seed": 7}, [4, 4, 4], marks=pytest.mark.slow),
        ({"trainer": {"accumulate_grad_batches": 2}, "data": {"batch_size": 6}}, [6, 6]),
    ],
)
def test_the_rest_of_an_epoch_holds_each_unused_sample_once(
    change: Change, batches: list[int], resumed: Callable[..., Path], within: Path
) -> None:
    first, rest = Steps(), Steps()
    with pytest.raises(CutError):
        built(within / ".." / "again", None, first, CutAfter(CUT)).fit()
    resumed(change, rest)
    used = [name for name in first.samples if name.startswith("count")][: 2 * 4]
    assert len(rest.samples) == sum(batches)
    assert sorted(used + rest.samples) == sorted(f"count-train-0-{i}" for i in range(20))
    shutil.rmtree(within.parent / "again")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"alpha": 3.0}}, "another model setting 'alpha', which can no longer"),
        ({"module_seed": 3}, "another model setting 'seed', which can no longer"),
        (
            {"allocator": lambda: SensitivityAllocator(rank=2)},
            "another allocator setting 'rank', which can no longer take effect: keep it",
        ),
        (
            {"router": lambda: AutoencoderRouter(standardize=False)},
            "another router setting 'standardize', which can no longer",
        ),
        (
            {"tasks": [small_task("paint", epochs=2), TASKS[1]]},
            "another epochs of task paint, which can no longer",
        ),
        ({"trainer": {"limit_train_batches": 1}}, "stage 2 is past its new end"),
    ],
)
def test_a_change_that_comes_too_late_is_refused_by_name(
    change: Change, message: str, resumed: Callable[..., Path]
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        resumed(change)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_settings_that_hold_need_not_be_accepted_again(within: Path, tmp_path: Path) -> None:
    shutil.copytree(within, tmp_path, dirs_exist_ok=True)
    slow = {"optimizer": partial(AdamW, lr=1e-9)}
    with pytest.raises(CutError):
        built(tmp_path, slow, CutAfter(CUT + 1)).fit(Path("auto"))
    again = built(tmp_path, {**slow, "trainer": {"accept_changes": False}}).fit(Path("auto"))
    assert len(json.loads((again / "metrics.json").read_text())["accepted_changes"]) == 1


@pytest.mark.slow
def test_a_change_between_stages_holds_from_the_next_stage_on(
    plain_run: Path, tmp_path: Path
) -> None:
    class Stop(ContinualCallback):
        def on_evaluation_end(self, state: Any, module: Any) -> None:
            if state.stage.index == 2:
                raise CutError

        def on_stage_start(self, state: Any, module: Any) -> None:
            if state.stage.index == 2:
                raise CutError

    recipe = Recipe()
    with pytest.raises(CutError):
        replace(recipe, callbacks=[Stop()]).build(tmp_path).fit()
    change = replace(
        recipe,
        allocator=lambda: SensitivityAllocator(rank=2),
        trainer={"accept_changes": True},
    )
    run = change.build(tmp_path).fit(Path("auto"))
    ours, theirs = run_digests(run), run_digests(plain_run)
    assert ours != theirs
    shapes = {k: v.shape[0] for k, v in expert_tensors(run).items() if "lora_A" in k}
    assert {n for k, n in shapes.items() if k.startswith("paint/")} == {8}
    assert {n for k, n in shapes.items() if k.startswith("count/")} == {2}
    (record,) = json.loads((run / "metrics.json").read_text())["accepted_changes"]
    assert record == {
        "setting": "allocator setting 'rank'",
        "before": "8",
        "now": "2",
        "from_stage": 2,
    }
