"""CL-MoE: what a task uses, how experts are merged, and how both routers weigh them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import randomize
from torch import nn
from torch.testing import assert_close

from dmole.experts import ExpertLibrary, Gates
from dmole.experts.gates import MixingRecord
from dmole.regularizers import MomentumMerge
from dmole.regularizers.momentum import shares_of_use
from dmole.routing import DualMixing

IN, OUT, RANK, EXPERTS = 6, 4, 2, 3


def make_library(beta: float = 0.5) -> ExpertLibrary:
    mixing = DualMixing(beta)
    model = nn.ModuleDict({"x": nn.Linear(IN, OUT)})
    library = ExpertLibrary(model, lambda _: "language", mixing=mixing)
    for name in ("common", "a", "b"):
        shape = mixing.shape(RANK, 4.0, EXPERTS, common=name == "common")
        library.add_shapes(name, {"x": shape})
    randomize(library, "common", 0.7)
    return library


def part(library: ExpertLibrary, name: str) -> Any:
    ((_, expert),) = library.experts(name)
    return expert


def forward(library: ExpertLibrary, x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    with library.context.use(Gates(library.names, weights)):
        return library.model["x"](x)


def test_the_task_router_joins_the_instance_router_once_the_use_of_a_task_is_known() -> None:
    """Row 0 is of task a, whose use is known, row 1 of task b in training, row 2 of none."""
    library = make_library(beta=0.25)
    use = torch.tensor([0.0, 0.75, 0.25])
    part(library, "a").usage.copy_(use)
    x = torch.randn(3, 5, IN)
    found = forward(library, x, torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]))
    own = {k: v.detach().double() for k, v in part(library, "common").named_parameters()}
    expected = library.model["x"].base(x).double()
    p = (x.double() @ own["router"].T).softmax(dim=-1)
    weights = torch.stack([0.25 * p[0] + 0.75 * use, p[1]])
    for i in range(EXPERTS):
        rows = slice(i * RANK, (i + 1) * RANK)
        update = x[:2].double() @ own["lora_a"][rows].T @ own["lora_b"][:, rows].T
        expected[:2] += weights[..., i : i + 1] * 2.0 * update
    assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_use_is_the_share_of_the_largest_counts() -> None:
    assert shares_of_use(torch.tensor([1.0, 1.0, 0.0]), 1).tolist() == [1.0, 0.0, 0.0]
    assert shares_of_use(torch.tensor([1.0, 6.0, 2.0]), 2).tolist() == [0.0, 0.75, 0.25]
    assert not shares_of_use(torch.zeros(3), 2).any()


def stage_of(library: ExpertLibrary, index: int, name: str, probabilities: torch.Tensor) -> Any:
    """Return a stage with one batch, whose tokens have these probabilities."""
    record = MixingRecord("x", probabilities, probabilities)
    step = SimpleNamespace(gates=SimpleNamespace(records=[record]))
    return SimpleNamespace(
        library=library,
        experts=(name, "common"),
        index=index,
        samples=lambda count, size: iter([None]),
        step=lambda batch: (torch.zeros(()), step),
    )


def test_experts_are_merged_by_what_this_task_and_the_one_before_use() -> None:
    """Task a uses experts 0 and 1, task b experts 1 and 2."""
    library, term = make_library(), MomentumMerge(0.75, 0.25, top_k=2)
    library.remove("b")
    first = stage_of(library, 1, "a", torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]]))
    term.before_stage(first)
    before = library.state_dict("common")
    term.after_stage(first)
    assert part(library, "a").usage.tolist() == [0.5, 0.5, 0.0]
    assert all(torch.equal(v, before[k]) for k, v in library.tensors("common").items())

    library.add_shapes("b", {"x": DualMixing().shape(RANK, 4.0, EXPERTS, common=False)})
    second = stage_of(library, 2, "b", torch.tensor([[0.1, 0.3, 0.6], [0.1, 0.7, 0.2]]))
    term.before_stage(second)
    resumed = MomentumMerge(0.75, 0.25, top_k=2)
    resumed.load_tensors({key: value.clone() for key, value in term.tensors().items()})
    own = part(library, "common")
    for parameter in own.parameters():
        parameter.data += 1.0
    resumed.after_stage(second)
    assert part(library, "b").usage.tolist() == [0.0, 0.5, 0.5]
    kept = torch.tensor([0.25, 0.75, 0.75]).repeat_interleave(RANK)
    assert_close(own.lora_a.data, before["x.lora_a"] + (1 - kept)[:, None])
    assert_close(own.lora_b.data, before["x.lora_b"] + (1 - kept)[None, :])
    assert torch.equal(own.router.data, before["x.router"] + 1.0)
    assert not resumed.tensors()


def test_a_linear_without_a_record_of_the_task_is_merged_as_well() -> None:
    mixing, model = DualMixing(), nn.ModuleDict({name: nn.Linear(IN, OUT) for name in "xy"})
    library = ExpertLibrary(model, lambda _: "language", mixing=mixing)
    for name, linears in (("common", "xy"), ("a", "x")):
        shape = mixing.shape(RANK, 4.0, EXPERTS, common=name == "common")
        library.add_shapes(name, dict.fromkeys(linears, shape))
    stage, term = stage_of(library, 2, "a", torch.tensor([[0.5, 0.3, 0.2]])), MomentumMerge(0.75)
    _, step = stage.step(None)
    step.gates.records.append(MixingRecord("y", *[torch.tensor([[0.1, 0.3, 0.6]])] * 2))
    term.before_stage(stage)
    before = library.state_dict("common")
    for _, expert in library.experts("common"):
        expert.lora_a.data += 1.0
    term.after_stage(stage)
    assert part(library, "a").usage.tolist() == [0.5, 0.5, 0.0]
    for path in "xy":
        assert_close(library.tensors("common")[f"{path}.lora_a"], before[f"{path}.lora_a"] + 0.25)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="past_momentum must be in"):
        MomentumMerge(past_momentum=1.5)
    with pytest.raises(ValueError, match="top_k and samples must be at least 1"):
        MomentumMerge(top_k=0)
    with pytest.raises(ValueError, match="beta must be in"):
        DualMixing(-0.1)
    with pytest.raises(ValueError, match=r"tensor x\.other is unknown"):
        MomentumMerge().load_extra_tensors({"x.other": torch.zeros(1)})
    library = ExpertLibrary(nn.ModuleDict({"x": nn.Linear(IN, OUT)}), lambda _: "language")
    library.add("a", {"x": 2}, {"x": 4.0})
    stage = SimpleNamespace(library=library, experts=("a",), index=1)
    with pytest.raises(ValueError, match="no linear records the use of experts"):
        MomentumMerge().before_stage(stage)
