"""Where a new expert starts: the losses that decide it, and what it takes from its parent."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dmole.allocation import SensitivityAllocator, UniformAllocator
from dmole.allocation.start import answer_entropy, closest_expert
from dmole.callbacks import warm_start
from dmole.callbacks.expert_allocation import ExpertAllocation
from dmole.callbacks.warm_start import StartComparison, chosen_samples, compare_starts
from dmole.routing import CommonExpertRouter, CommonMixing, OracleRouter
from dmole.run import Interrupted

World = Any
MakeWorld = Callable[..., World]


def closest(**options: Any) -> UniformAllocator:
    options = {"start_ratio": math.inf} | options
    return UniformAllocator(rank=2, start="closest", **options)


def start(built: World, callback: ExpertAllocation, index: int) -> None:
    built.state.stage = built.state.plan[index - 1]
    callback.on_stage_start(built.state, built.module)


def losses_of(built: World, *experts: str, stage: int = 2) -> dict[str | None, float]:
    plan = built.state.plan[stage - 1]
    return compare_starts(built.state, built.module, plan, experts).losses


def values(built: World, name: str) -> dict[str, Tensor]:
    return dict(built.module.library.state_dict(name))


def move(built: World, name: str, size: float) -> None:
    """Move an expert along the gradient of the second task's loss; a negative size lowers it."""
    module, stage = built.module, built.state.plan[1]
    samples = chosen_samples(built.state, stage, 64, module.seed)
    (batch,) = built.data.embedding_loader(samples, batch_size=64)
    module.library.train_only(name)
    module.backbone.eval()
    with torch.enable_grad():
        module.loss_with(batch, name).backward()
    for _, parameter in module.library.parameters(name):
        parameter.data.add_(size * parameter.grad)
        parameter.grad = None


@pytest.mark.parametrize(
    ("losses", "expert"),
    [
        ({None: 2.0, "a": 0.5, "b": 0.9}, "a"),
        ({None: 2.0, "a": 0.9, "b": 0.5}, "b"),
        ({None: 0.4, "a": 0.5, "b": 0.9}, None),
        ({None: 0.5, "a": 0.5}, None),  # no better than the base model
    ],
)
def test_the_smallest_loss_decides(losses: dict[str | None, float], expert: str | None) -> None:
    assert closest_expert(losses) == expert


@pytest.mark.parametrize(("entropy", "expert"), [(0.5, "a"), (0.3, None), (0.0, None)])
def test_an_expert_far_worse_than_the_frequencies_of_the_answers_is_no_parent(
    entropy: float, expert: str | None
) -> None:
    losses = {None: 8.0, "a": 0.6, "b": 5.0}
    assert closest_expert(losses, entropy, ratio=1.5) == expert
    assert closest_expert(losses, entropy, ratio=math.inf) == "a"
    assert closest_expert({None: 8.0, "a": 0.05}, entropy, ratio=1.5) == "a"  # it knows the answers


def test_the_entropy_is_that_of_the_tokens_at_each_position() -> None:
    # log(2) at the first position of four answers, log(3) at the second of three, none at the third
    answers = [[1, 5], [1, 6, 9], [2, 7, 9], [2]]
    expected = (4 * math.log(2) + 3 * math.log(3) + 0) / 9
    assert answer_entropy(answers) == pytest.approx(expected)
    assert answer_entropy([[3, 1]] * 5) == 0
    assert answer_entropy([]) == 0


def test_an_expert_that_helps_is_copied_and_stays_as_it_is(world: MakeWorld) -> None:
    callback, built = ExpertAllocation(), world(allocator=closest())
    start(built, callback, 1)
    assert callback.allocations[1].parent is None
    move(built, "paint", -0.05)
    parent = values(built, "paint")
    start(built, callback, 2)
    assert callback.allocations[2].parent == "paint"
    assert callback.parents() == {"paint": None, "count": "paint"}
    copied = values(built, "count")
    assert copied.keys() == parent.keys()
    assert all(torch.equal(tensor, copied[key]) for key, tensor in parent.items())
    for _, parameter in built.module.library.parameters("count"):
        parameter.data.add_(1.0)
    assert all(torch.equal(t, values(built, "paint")[key]) for key, t in parent.items())


@pytest.mark.parametrize(("kind", "size"), [("closest", 0.05), ("fresh", -0.05)])
def test_an_expert_that_harms_or_is_not_asked_for_is_not_copied(
    world: MakeWorld, kind: Any, size: float
) -> None:
    allocator = UniformAllocator(rank=2, start=kind, start_ratio=math.inf)
    callback, built = ExpertAllocation(), world(allocator=allocator)
    start(built, callback, 1)
    move(built, "paint", size)
    start(built, callback, 2)
    assert callback.allocations[2].parent is None
    tensors = values(built, "count")
    assert not any(tensor.any() for key, tensor in tensors.items() if "lora_b" in key)


def test_the_parents_units_replace_those_of_the_scores(world: MakeWorld) -> None:
    allocator = SensitivityAllocator(
        rank=2, budget_fraction=0.3, start="closest", start_ratio=math.inf
    )
    callback, built = ExpertAllocation(), world(allocator=allocator)
    start(built, callback, 1)
    move(built, "paint", -0.05)
    start(built, callback, 2)
    first, second = callback.allocations[1], callback.allocations[2]
    assert second.parent == "paint"
    assert [e.unit for e in second.experts] == [e.unit for e in first.experts]
    assert [e.score for e in second.entries] != [e.score for e in first.entries]
    again = ExpertAllocation()
    again.load_state_dict(callback.state_dict())
    assert again.parents() == {"paint": None, "count": "paint"}


def test_a_common_expert_is_no_parent(world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[list[str]] = []

    def found(state: Any, module: Any, stage: Any, experts: list[str]) -> StartComparison:
        compared.append(list(experts))
        return StartComparison({None: 2.0, **dict.fromkeys(experts, 1.0)}, 1.0)

    monkeypatch.setattr("dmole.callbacks.expert_allocation.compare_starts", found)
    router = CommonExpertRouter(OracleRouter(), CommonMixing())
    callback, built = ExpertAllocation(), world(allocator=closest(), router=router)
    start(built, callback, 1)
    start(built, callback, 2)
    assert compared == [["paint"]]
    assert callback.parents() == {"common": None, "paint": None, "count": "paint"}


def test_losses_are_means_over_answer_tokens_under_one_expert(world: MakeWorld) -> None:
    built = world(allocator=closest())
    built.begin(1)
    for _, parameter in built.module.library.parameters("paint"):
        parameter.data.normal_(0, 0.05, generator=torch.Generator().manual_seed(0))
    alone = losses_of(built, "paint")
    built.place("other")
    for _, parameter in built.module.library.parameters("other"):
        parameter.data.normal_(0, 0.05, generator=torch.Generator().manual_seed(1))
    both = losses_of(built, "other", "paint")
    assert list(both) == [None, "other", "paint"]
    assert {name: both[name] for name in alone} == alone
    assert len(set(both.values())) == 3
    samples = chosen_samples(built.state, built.state.plan[1], 64, built.module.seed)
    (batch,) = built.data.embedding_loader(samples, batch_size=64)
    with torch.no_grad():
        assert float(built.module.base_loss(batch)) == pytest.approx(alone[None], rel=1e-5)
        assert float(built.module.loss_with(batch, "paint")) == pytest.approx(
            alone["paint"], rel=1e-5
        )


def test_a_common_expert_is_active_beside_each_past_expert_and_beside_none(
    world: MakeWorld,
) -> None:
    router = CommonExpertRouter(OracleRouter(), CommonMixing())
    built = world(allocator=closest(), router=router)
    built.begin(1)
    for name in ("common", "paint"):
        for _, parameter in built.module.library.parameters(name):
            parameter.data.normal_(0, 0.05, generator=torch.Generator().manual_seed(len(name)))
    found = losses_of(built, "paint")
    samples = chosen_samples(built.state, built.state.plan[1], 64, built.module.seed)
    (batch,) = built.data.embedding_loader(samples, batch_size=64)
    built.place("count")  # changes no output yet
    with torch.no_grad():
        both = float(built.module.loss_with(batch, "common", "paint"))
        fresh = float(built.module.loss_with(batch, "common", "count"))
        base = float(built.module.base_loss(batch))
    assert found == pytest.approx({None: fresh, "paint": both}, rel=1e-5)
    assert len({round(loss, 4) for loss in (both, fresh, base)}) == 3


def test_the_samples_are_compared_in_batches_of_the_training(
    world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = world(allocator=closest())
    built.data.eval_batch_size = 6
    built.begin(1)
    sizes: list[int] = []
    base_loss = built.module.base_loss

    def keep(batch: Any) -> Tensor:
        sizes.append(len(batch.task_names))
        return base_loss(batch)

    monkeypatch.setattr(built.module, "base_loss", keep)
    losses_of(built, "paint")
    assert sizes == [2, 2, 2]


@pytest.mark.parametrize("count", [1, 5, 6])
def test_two_ranks_share_the_samples_and_find_the_same_losses(
    world: MakeWorld, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    built = world(allocator=closest(start_samples=count))
    built.begin(1)
    move(built, "paint", 0.05)
    expected = losses_of(built, "paint")
    shares: list[Tensor] = []

    def keep(sums: Tensor) -> Tensor:
        shares.append(sums)
        return sums.clamp_min(1e-9)  # a rank without samples has no mean of its own

    monkeypatch.setattr(warm_start, "sum_over_ranks", keep)
    for rank in (0, 1):
        monkeypatch.setattr("dmole.datamodule._rank", lambda rank=rank: (rank, 2))
        losses_of(built, "paint")
    *totals, tokens = (shares[0] + shares[1]).tolist()
    assert bool(shares[1].any()) == (count > 2)  # batches of two
    found = {name: total / tokens for name, total in zip(expected, totals, strict=True)}
    assert found == pytest.approx(expected, rel=1e-5)


def test_the_choice_of_samples_depends_on_seed_and_stage_alone(world: MakeWorld) -> None:
    built = world(sizes=(20, 20))
    stage = built.state.plan[1]

    def ids(count: int, seed: int) -> list[str]:
        return [sample.id for sample, _ in chosen_samples(built.state, stage, count, seed)]

    assert len(ids(8, 0)) == 8
    assert len(ids(64, 0)) == 20
    torch.manual_seed(5)
    assert ids(8, 0) == ids(8, 0) != ids(8, 1)
    assert {task for _, task in chosen_samples(built.state, stage, 8, 0)} == {"count"}


def test_a_request_to_end_stops_the_comparison(world: MakeWorld) -> None:
    built = world(allocator=closest())
    built.begin(1)
    built.state.interruption.signum = 15
    with pytest.raises(Interrupted):
        losses_of(built, "paint")


def test_a_loss_that_is_not_finite_names_stage_and_expert(world: MakeWorld) -> None:
    built = world(allocator=closest())
    built.begin(1)
    for _, parameter in built.module.library.parameters("paint"):
        parameter.data.fill_(math.nan)
    with pytest.raises(ValueError, match="stage count: the loss under expert paint is not finite"):
        losses_of(built, "paint")
