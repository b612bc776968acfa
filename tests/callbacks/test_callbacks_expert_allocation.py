"""Where a stage's experts go, when they are placed, and what is written of it."""

from __future__ import annotations

import csv
from collections.abc import Callable
from typing import Any

import pytest
import torch

from dmole.allocation import SensitivityAllocator, UniformAllocator
from dmole.callbacks.expert_allocation import (
    COMMON,
    ExpertAllocation,
    describe_allocation,
    plan_allocation,
)
from dmole.routing import CommonExpertRouter, CommonMixing, OracleRouter
from dmole.run import Interrupted
from dmole.streams.stream import SequentialStream

World = Any
MakeWorld = Callable[..., World]


def start(built: World, callback: ExpertAllocation, index: int) -> None:
    built.state.stage = built.state.plan[index - 1]
    callback.on_stage_start(built.state, built.module)


def trainable(built: World) -> set[str]:
    """Return the experts that gradients reach."""
    library = built.module.library
    return {
        name
        for name in library.names
        if any(parameter.requires_grad for _, parameter in library.parameters(name))
    }


def test_a_new_expert_is_placed_where_the_plan_says_and_alone_trains(world: MakeWorld) -> None:
    callback, built = ExpertAllocation(), world()
    start(built, callback, 1)
    start(built, callback, 2)
    assert built.module.library.names == ("paint", "count")
    assert trainable(built) == {"count"}
    stage = built.module.stage
    assert (stage.index, stage.experts, stage.tasks) == (2, ("count",), ("count",))
    assert stage.allocation is callback.allocations[2]
    paths = {path for entry in stage.allocation.experts for path in entry.linears}
    assert {path for path, _ in built.module.library.experts("count")} == paths
    assert [lap.phase for lap in built.state.clock.laps] == ["allocate", "allocate"]


def test_an_expert_that_exists_continues_training_without_a_plan(world: MakeWorld) -> None:
    callback, built = ExpertAllocation(), world(stream=SequentialStream("shared"))
    start(built, callback, 1)
    placed = dict(built.module.library.experts("shared"))
    start(built, callback, 2)
    assert dict(built.module.library.experts("shared")) == placed
    assert list(callback.allocations) == [1]
    assert built.module.stage.allocation is None
    assert built.module.library.versions == {"shared": 2}  # other draws than in the first stage


def test_a_common_expert_is_placed_first_and_trains_in_every_stage(world: MakeWorld) -> None:
    callback, built = (
        ExpertAllocation(),
        world(router=CommonExpertRouter(OracleRouter(), CommonMixing())),
    )
    start(built, callback, 1)
    assert built.module.library.names == ("common", "paint")
    assert list(callback.allocations) == [COMMON, 1]
    start(built, callback, 2)
    assert list(callback.allocations) == [COMMON, 1, 2]
    assert built.module.stage.experts == ("count", "common")
    assert trainable(built) == {"count", "common"}


def test_the_table_has_a_row_for_each_unit_and_stage(world: MakeWorld) -> None:
    callback, built = ExpertAllocation(), world(allocator=UniformAllocator(rank=2, targets="attn"))
    start(built, callback, 1)
    start(built, callback, 2)
    with (built.folder / "allocation.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    units = [unit.name for unit in built.module.units()]
    assert [(row["stage"], row["expert"], row["unit"]) for row in rows] == [
        (stage, task, unit) for stage, task in (("1", "paint"), ("2", "count")) for unit in units
    ]
    assert {row["rank"] for row in rows} <= {"0", "2"}


def test_plans_come_back_from_a_checkpoint(world: MakeWorld) -> None:
    callback, built = ExpertAllocation(), world()
    start(built, callback, 1)
    other = ExpertAllocation()
    other.load_state_dict(callback.state_dict())
    assert other.allocations == callback.allocations
    assert other.rows() == callback.rows()


def test_scores_are_taken_without_the_dropout_of_the_base_model(world: MakeWorld) -> None:
    plain, built = (world(allocator=SensitivityAllocator(rank=2)) for _ in range(2))
    droppers = [m for m in built.module.backbone.model.modules() if hasattr(m, "attention_dropout")]
    for module in droppers:
        module.attention_dropout = 0.5
    assert droppers
    built.module.train()
    plans = [
        plan_allocation(each.state, each.module, each.state.plan[0], "paint")
        for each in (plain, built)
    ]
    assert plans[0] == plans[1]
    assert built.module.training


def test_scores_are_of_the_base_model_and_the_stage_that_comes(world: MakeWorld) -> None:
    built = world(allocator=SensitivityAllocator(rank=2))
    first, second = built.state.plan
    alone = plan_allocation(built.state, built.module, second, "count")
    start(built, ExpertAllocation(), 1)
    for _, parameter in built.module.library.parameters("paint"):
        parameter.data.add_(0.1)
    after = plan_allocation(built.state, built.module, second, "count")
    assert after.difficulty == alone.difficulty
    assert plan_allocation(built.state, built.module, first, "count").difficulty != after.difficulty
    assert not any(p.grad is not None for p in built.module.parameters())


def test_the_expert_of_the_stage_before_is_in_host_memory_while_the_next_is_scored(
    world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = world(allocator=SensitivityAllocator(rank=2), past_experts_on_device=0)
    start(built, ExpertAllocation(), 1)
    library, loss, loaded = built.module.library, built.module.base_loss, []

    def watched(batch: Any) -> Any:
        loaded.append(sum(parameter.numel() for _, parameter in library.parameters("paint")))
        return loss(batch)

    monkeypatch.setattr(built.module, "base_loss", watched)
    plan_allocation(built.state, built.module, built.state.plan[1], "count")
    assert loaded
    assert set(loaded) == {0}


def test_a_request_to_end_stops_the_scoring(world: MakeWorld) -> None:
    built = world(allocator=SensitivityAllocator(rank=2))
    built.state.interruption.signum = 15
    with pytest.raises(Interrupted):
        plan_allocation(built.state, built.module, built.state.plan[0], "paint")
    assert built.module.library.names == ()


def test_what_trains_is_counted_with_the_parameters_of_regularizers(world: MakeWorld) -> None:
    callback, built = ExpertAllocation(), world()
    start(built, callback, 1)
    built.module.extra = torch.nn.Linear(3, 2)
    callback.on_train_start(built.trainer, built.module)
    callback.on_train_start(built.trainer, built.module)  # again, after a resume
    size = built.module.library.count("paint")
    assert built.state.clock.costs.trainable == {"paint": size + 8}
    assert built.state.clock.costs.base == built.module.backbone.parameter_count()


def test_ranks_that_disagree_are_an_error(
    world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "dmole.callbacks.expert_allocation.gather_objects", lambda digest: [digest, "another"]
    )
    with pytest.raises(RuntimeError, match="the ranks disagree where expert 'paint' belongs"):
        start(world(), ExpertAllocation(), 1)


def test_a_plan_is_described_unit_by_unit(world: MakeWorld) -> None:
    callback, built = ExpertAllocation(), world()
    start(built, callback, 1)
    text = describe_allocation(callback.allocations[1], 1234)
    lines = text.splitlines()
    assert lines[0] == "expert paint: 1234 parameters"
    assert len(lines) == 1 + len(built.module.units())
    assert all(line.endswith("rank 2") for line in lines[1:])
    assert all("not scored" in line for line in lines[1:])  # the allocator reads no scores
