"""The training that scores the units by how far it moves them."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from two_ranks import on_ranks

from dmole.allocation import KeepInitializer, SensitivityAllocator
from dmole.callbacks.expert_allocation import describe_allocation, plan_allocation
from dmole.curriculum.optimization import learning_rate_factor
from dmole.data import Task
from dmole.datamodule import ContinualDataModule
from dmole.module import ContinualModule
from dmole.run import Interrupted

World = Any
MakeWorld = Callable[..., World]

make_allocator = partial(SensitivityAllocator, rank=2, score="delta", score_steps=4)
make_adamw = partial(torch.optim.AdamW, lr=1e-2)


def scores(world: World, stage: int = 1, name: str = "new") -> dict[str, float | None]:
    plan = plan_allocation(world.state, world.module, world.state.plan[stage - 1], name)
    return {entry.unit: entry.score for entry in plan.entries}


def test_scores_are_those_of_a_plain_training_loop(world: MakeWorld) -> None:
    built = world(allocator=make_allocator(), optimizer=make_adamw, warmup=0.5)
    built.trainer.gradient_clip_val = 0.1
    found = scores(built)

    other = world(allocator=make_allocator())
    module, stage, library = other.module, other.state.plan[0], other.module.library
    module.add_expert(module.allocator.largest("new", module.units(), first=True))
    library.train_only("new")
    parameters = [parameter for _, parameter in library.parameters("new")]
    optimizer = make_adamw(parameters)
    batches = other.data.random_steps(stage, 4, module.seed)
    module.eval()
    for step, (batch,) in enumerate(batches):
        optimizer.param_groups[0]["lr"] = 1e-2 * learning_rate_factor(step, 4, 0.5, "cosine")
        optimizer.zero_grad()
        module.loss_with(batch, "new").backward()
        torch.nn.utils.clip_grad_norm_(parameters, 0.1)
        optimizer.step()
    updates = {
        path: expert.scaling * expert.up.detach() @ expert.lora_a.detach()
        for path, expert in library.experts("new")
    }
    for unit in module.units():
        moved = sum(float(updates[path].norm()) / library.base_norm(path) for path in unit.linears)
        assert found[unit.name] == pytest.approx(moved, rel=1e-4)
    assert len(set(found.values())) == len(found)


def test_nothing_is_left_of_the_training(world: MakeWorld) -> None:
    built = world(allocator=make_allocator(), dropout=0.5)
    module, before = built.module, torch.get_rng_state()
    weights = {key: p.detach().clone() for key, p in module.backbone.model.named_parameters()}
    first = scores(built)
    assert torch.equal(torch.get_rng_state(), before)
    assert (module.library.names, module.library.versions) == ((), {})
    after = dict(module.backbone.model.named_parameters())
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[key], weight) for key, weight in weights.items())
    assert not any(p.requires_grad or p.grad is not None for p in module.parameters())
    assert scores(built) == first


def test_scores_are_of_the_stage_that_comes_without_past_experts(world: MakeWorld) -> None:
    built = world(allocator=make_allocator())
    alone = scores(built, 2)
    built.module.add_expert(
        built.module.allocator.largest("paint", built.module.units(), first=True)
    )
    for _, parameter in built.module.library.parameters("paint"):
        parameter.data.add_(0.1)
    assert scores(built, 2) == alone
    assert scores(built, 1) != alone
    assert built.module.library.names == ("paint",)


def test_only_units_of_the_modalities_that_may_get_experts_train(world: MakeWorld) -> None:
    built = world(allocator=make_allocator(modules=["language"]))
    plan = plan_allocation(built.state, built.module, built.state.plan[0], "new")
    assert {entry.modality for entry in plan.entries if entry.score is not None} == {"language"}
    assert {entry.modality for entry in plan.experts} == {"language"}
    text = describe_allocation(plan, 1)
    assert text.count("not scored") == sum(entry.modality == "vision" for entry in plan.entries)
    assert "no gradient" not in text


def test_a_unit_that_no_gradient_reaches_has_no_score(world: MakeWorld, tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "what is two"}, {"from": "gpt", "value": "red"}]
    rows = [{"id": str(index), "conversations": turns} for index in range(3)]
    (tmp_path / "texts.json").write_text(json.dumps(rows))
    built = world(allocator=make_allocator())
    path, base = str(tmp_path / "texts.json"), built.module.backbone
    task = Task("paint", train=path, test=path, max_new_tokens=2)
    built.state.data = ContinualDataModule([task], batch_size=2)
    built.state.data.attach_processor(base.processor, base.context_length)
    plan = plan_allocation(built.state, built.module, built.state.plan[0], "new")
    assert {entry.modality for entry in plan.entries if entry.score is None} == {"vision"}
    assert "no gradient" in describe_allocation(plan, 1)


@pytest.mark.parametrize("allowed", [0, 1])
def test_a_gradient_that_is_not_finite_names_the_samples_or_is_left_out(
    world: MakeWorld,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    allowed: int,
) -> None:
    built = world(allocator=make_allocator(), skip_nonfinite_steps=allowed)
    loss, calls = ContinualModule.loss_with, []

    def spoiled(module: ContinualModule, *args: Any) -> torch.Tensor:
        calls.append(args)
        return loss(module, *args) * (torch.nan if len(calls) == 3 else 1.0)

    monkeypatch.setattr(ContinualModule, "loss_with", spoiled)
    text = "stage paint: a gradient is not finite in step 3 of the training that scores the units; "
    text += "samples: paint/train/"
    if allowed:
        assert all(scores(built).values())
        assert [r.message[: len(text)] for r in caplog.records if r.levelname == "WARNING"] == [
            text
        ]
    else:
        with pytest.raises(ValueError, match=text):
            scores(built)
    assert built.module.library.names == ()


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_a_limit_of_zero_does_not_clip(world: MakeWorld, algorithm: str) -> None:
    plain, other = (world(allocator=make_allocator()) for _ in range(2))
    other.trainer.gradient_clip_val = 0
    other.trainer.gradient_clip_algorithm = algorithm
    assert scores(other) == scores(plain)


def test_scores_are_taken_in_the_precision_of_the_trainer(
    world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, loss, found = world(allocator=make_allocator()), ContinualModule.loss_with, []
    built.trainer.strategy.precision_plugin = MixedPrecision("bf16-mixed", "cpu")

    def watched(module: ContinualModule, *args: Any) -> torch.Tensor:
        found.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)
        return loss(module, *args)

    monkeypatch.setattr(ContinualModule, "loss_with", watched)
    assert all(scores(built).values())
    assert found == [torch.bfloat16] * 4


def test_parts_of_a_step_are_added_up(world: MakeWorld) -> None:
    """Two batches of a step give the scores of one batch of all its samples."""
    whole, parts = (world(sizes=(8, 8), allocator=make_allocator()) for _ in range(2))
    whole.data.batch_size = 4
    parts.trainer.accumulate_grad_batches = 2
    parts.data.trainer = parts.trainer
    assert scores(parts) == pytest.approx(scores(whole), rel=1e-3)


def test_a_request_to_end_stops_the_training(world: MakeWorld) -> None:
    built = world(allocator=make_allocator())
    built.state.interruption.signum = 15
    with pytest.raises(Interrupted):
        scores(built)
    assert built.module.library.names == ()


def test_two_ranks_score_like_one(world: MakeWorld) -> None:
    """Steps of two samples, the last of one, so that a rank has none."""

    def found(batch_size: int) -> dict[str, float | None]:
        torch.set_num_threads(1)
        built = world(sizes=(5, 5), allocator=make_allocator(), optimizer=make_adamw)
        built.data.batch_size = batch_size
        return scores(built)

    alone = found(2)
    first, second = on_ranks(2, partial(connected, found))
    assert first == second
    assert first == pytest.approx(alone, rel=1e-3)


def connected(work: Callable[[int], Any]) -> Any:
    torch.distributed.init_process_group("gloo")
    try:
        return work(1)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score": "joint"}, "score must be one of .*'gradient', 'delta'.*, got 'joint'"),
        ({"score": "delta", "score_steps": 0}, "score_steps must be at least 1, got 0"),
        (
            {"score": "delta", "initializer": KeepInitializer()},
            "score 'delta' trains both factors of an expert, and KeepInitializer fixes one",
        ),
    ],
)
def test_an_option_that_there_is_not_is_refused(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SensitivityAllocator(**options)
