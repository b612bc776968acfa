"""What an initializer measures around a stage, on the tiny model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from dmole.allocation import (
    ConditionAllocator,
    EvaInitializer,
    GradientInitializer,
    Initializer,
    KeepInitializer,
    UniformAllocator,
)
from dmole.allocation.condition import reciprocal_condition
from dmole.allocation.initializers.directions import principal_directions, top_directions
from dmole.callbacks.expert_allocation import ExpertAllocation, plan_allocation
from dmole.callbacks.proxy_pass import ProxyBatches
from dmole.routing import AllExpertsRouter, OracleRouter, TokenRouter, TopKGate
from dmole.run import Interrupted

World = Any
MakeWorld = Callable[..., World]
TARGETS = r"layers\.1\.(self_attn|attn)\.q_proj"
"""Few linears, one of either modality, so that a test takes little time."""


def allocator(starts: Initializer | None, targets: str = TARGETS, **options: Any) -> Any:
    return UniformAllocator(rank=2, targets=targets, initializer=starts, **options)


def start(built: World, callback: ExpertAllocation, index: int = 1) -> dict[str, Tensor]:
    built.state.stage = built.state.plan[index - 1]
    callback.on_stage_start(built.state, built.module)
    return dict(built.module.library.state_dict(built.state.stage.expert))


def downs(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removesuffix(".lora_a"): t for k, t in tensors.items() if k.endswith("lora_a")}


def move(built: World, name: str) -> None:
    """Let an expert act, as after training."""
    tensors = built.module.library.state_dict(name)
    for key, tensor in tensors.items():
        if key.endswith("lora_b"):
            tensor.fill_(0.05)
    built.module.library.load_state_dict(name, tensors)


def gradients(built: World, index: int, *experts: str) -> dict[str, Tensor]:
    """Return the gradients of all samples, by torch alone."""
    module, paths = built.module, list(downs(built.module.library.state_dict("paint")))
    weights = [module.backbone.model.get_submodule(path).base.weight for path in paths]
    total = [torch.zeros_like(weight) for weight in weights]
    for parts in ProxyBatches(built.state, built.state.plan[index - 1], 1.0, module.seed):
        for part in parts:
            for weight in weights:
                weight.requires_grad_(True)
            loss = module.loss_with(part, *experts)
            for sum_, gradient in zip(total, torch.autograd.grad(loss, weights), strict=True):
                sum_.add_(gradient)
    for weight in weights:
        weight.requires_grad_(False)
    return dict(zip(paths, total, strict=True))


@pytest.mark.parametrize("router", [AllExpertsRouter(), OracleRouter()])
def test_the_gradient_is_that_of_the_model_that_trains_with_the_new_expert(
    world: MakeWorld, router: Any
) -> None:
    starts = GradientInitializer(proxy_fraction=1.0, proxy_passes=2)
    callback, built = ExpertAllocation(), world(allocator=allocator(starts), router=router)
    start(built, callback)
    move(built, "paint")
    found = start(built, callback, 2)
    assert not any(tensor.any() for key, tensor in found.items() if key.endswith("lora_b"))
    merged = ("paint",) if isinstance(router, AllExpertsRouter) else ()
    for path, gradient in gradients(built, 2, *merged).items():
        assert_close(found[f"{path}.lora_a"], top_directions(gradient, 2), atol=1e-4, rtol=0)
    flags = {n: p.requires_grad for n, p in built.module.backbone.model.named_parameters()}
    assert {name for name, trains in flags.items() if trains} == {
        name for name in flags if "expert_count" in name
    }


def test_without_an_initializer_an_expert_starts_as_before(world: MakeWorld) -> None:
    found = start(world(allocator=allocator(None)), ExpertAllocation())
    again = start(world(allocator=allocator(EvaInitializer())), ExpertAllocation())
    assert found.keys() == again.keys()
    assert not any(torch.equal(t, downs(again)[path]) for path, t in downs(found).items())


def test_a_fixed_a_never_trains_and_is_orthogonal_to_what_is_kept(world: MakeWorld) -> None:
    callback = ExpertAllocation()
    built = world(allocator=allocator(KeepInitializer()), router=AllExpertsRouter())
    first = start(built, callback)
    library = built.module.library
    trains = {name for name, p in library.model.named_parameters() if p.requires_grad}
    assert trains
    assert all(name.endswith("expert_paint.lora_b") for name in trains)
    move(built, "paint")
    callback.on_experts_final(built.state, built.module)
    kept = callback.sequence_state_dict()
    assert kept.keys() == downs(first).keys()
    second = start(built, callback, 2)
    for path, rows in kept.items():
        basis = torch.cat([principal_directions(library.base_weight(path), 0.6), rows])
        assert_close(basis @ basis.T, torch.eye(len(basis)), atol=1e-4, rtol=0)
        overlap = second[f"{path}.lora_a"] @ basis.T
        assert_close(overlap, torch.zeros_like(overlap), atol=1e-4, rtol=0)
    built.module.focus(built.module.stage)  # as before the router is fitted
    assert not any(e.lora_a.requires_grad for _, e in library.experts("count"))


def test_features_do_not_depend_on_how_samples_are_batched(world: MakeWorld) -> None:
    found = []
    for size in (2, 3):  # other padding, and a last batch of another size
        callback = ExpertAllocation()
        starts = EvaInitializer(proxy_fraction=1.0, proxy_passes=size)
        built = world(allocator=allocator(starts))
        built.data.batch_size = size
        found.append(downs(start(built, callback)))
    for path, rows in found[0].items():
        assert_close(rows, found[1][path], atol=1e-3, rtol=0)


def test_past_experts_in_host_memory_change_nothing(world: MakeWorld) -> None:
    found = []
    for held in (None, 0):
        callback = ExpertAllocation()
        built = world(
            allocator=allocator(KeepInitializer()),
            router=AllExpertsRouter(),
            past_experts_on_device=held,
        )
        start(built, callback)
        move(built, "paint")
        callback.on_experts_final(built.state, built.module)
        found.append(start(built, callback, 2))
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(tensor, found[1][key]) for key, tensor in found[0].items())


def test_directions_come_back_from_a_checkpoint_or_are_refused(world: MakeWorld) -> None:
    callback = ExpertAllocation()
    rows = torch.eye(3)[:2]
    callback.load_sequence_state_dict({"fc": rows})
    assert torch.equal(callback.sequence_state_dict()["fc"], rows)
    bad: tuple[Any, ...] = (torch.full((1, 2), torch.nan), torch.ones(3, 2), torch.ones(2), "rows",
                            torch.ones(1, 2, dtype=torch.int64))  # fmt: skip
    for value in bad:
        with pytest.raises(ValueError, match="kept directions of linear 'fc' are not valid"):
            callback.load_sequence_state_dict({"fc": value})
    built = world(allocator=allocator(KeepInitializer()))
    path = next(iter(downs(start(world(allocator=allocator(None)), ExpertAllocation()))))
    callback.load_sequence_state_dict({path: rows})
    with pytest.raises(ValueError, match="have another width"):
        start(built, callback)


def test_mixed_experts_and_weights_that_are_not_finite_are_refused(world: MakeWorld) -> None:
    mixed = world(
        allocator=allocator(EvaInitializer(), experts=2), router=TokenRouter(TopKGate(top_k=1))
    )
    with pytest.raises(ValueError, match="EvaInitializer starts plain experts, and TokenRouter"):
        start(mixed, ExpertAllocation())
    for starts in (GradientInitializer(), EvaInitializer()):
        built = world(allocator=allocator(starts))
        next(built.module.backbone.model.parameters()).data.fill_(torch.nan)
        with pytest.raises(ValueError, match=r"not finite|is nan"):
            start(built, ExpertAllocation())


def test_a_request_to_end_stops_the_measuring(world: MakeWorld) -> None:
    for starts in (GradientInitializer(), EvaInitializer()):
        built = world(allocator=allocator(starts))
        built.state.interruption.signum = 15
        with pytest.raises(Interrupted):
            start(built, ExpertAllocation())


def test_condition_numbers_choose_without_samples(world: MakeWorld) -> None:
    built = world(allocator=ConditionAllocator(rank=2, budget_fraction=0.1))
    plan = plan_allocation(built.state, built.module, built.state.plan[0], "paint")
    other = plan_allocation(built.state, built.module, built.state.plan[1], "paint")
    assert plan == other
    scores = {
        entry.unit: reciprocal_condition(built.module.library.base_weight(entry.unit))
        for entry in plan.entries
    }
    best = sorted(scores, key=lambda unit: -scores[unit])[: len(plan.experts)]
    assert {entry.unit for entry in plan.experts} == set(best)
