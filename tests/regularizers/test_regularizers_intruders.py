"""Intruder dimensions: closed forms, parity with PEFT, and what an expert becomes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from dmole.experts import ExpertLibrary, ExpertShape
from dmole.experts.soft_prompts import PromptShape
from dmole.regularizers import IntruderReduction, StageView, find_intruders, reduced_update

W = torch.diag(torch.tensor([4.0, 3.0, 2.0, 0.0]))[:, :3]


def update(size: float) -> torch.Tensor:
    """Write along an output direction that the weight does not have."""
    found = torch.zeros(4, 3)
    found[3, 0] = size
    return found


def test_a_leading_direction_unlike_all_of_the_weight_is_an_intruder() -> None:
    assert find_intruders(W, update(0.0), 3, 0.9) == []
    assert find_intruders(W, update(40.0), 3, 0.9) == [0]
    assert find_intruders(W, update(40.0), 3, 0.0) == []


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0])
def test_the_share_of_an_intruder_is_removed(factor: float) -> None:
    change = update(40.0)
    left, values, right = torch.linalg.svd(W + change, full_matrices=False)
    part = values[0] * torch.outer(left[:, 0], right[0])
    down, up = reduced_update(W, change, [0], factor, rank=3, scaling=2.0)
    assert_close(2.0 * up @ down, change - (1 - factor) * part, atol=1e-4, rtol=1e-4)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(8, 12, bias=False)
        self.proj = nn.Linear(12, 6, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(self.fc(x))


def library(*names: str) -> ExpertLibrary:
    """Return experts of which one rules the output of a linear, and the other hardly acts."""
    found = ExpertLibrary(Model(), lambda _: "language")
    for name in names:
        found.add(name, {"fc": 2, "proj": 2}, {"fc": 4.0, "proj": 4.0})
        for path, expert in found.experts(name):
            generator = torch.Generator().manual_seed(len(path))  # the same for every expert
            expert.lora_a.data.copy_(torch.randn(expert.lora_a.shape, generator=generator))
            noise = torch.randn(expert.lora_b.shape, generator=generator)
            expert.lora_b.data.copy_(noise * (5.0 if path == "fc" else 1e-4))
    found.train_only(names[-1])
    return found


def stage(experts: ExpertLibrary) -> StageView:
    def nothing(*_: Any) -> Any:
        raise AssertionError("it reads no samples")

    return StageView(experts, (experts.names[-1],), 1, (), (), nothing, nothing)


def test_experts_are_reduced_as_by_peft() -> None:
    peft = pytest.importorskip("peft")
    experts = library("paint")
    before = experts.state_dict("paint")
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["fc", "proj"])
    theirs = peft.get_peft_model(Model(), config)
    for path in ("fc", "proj"):
        layer = theirs.get_submodule(f"base_model.model.{path}")
        layer.lora_A["default"].weight.data.copy_(before[f"{path}.lora_a"])
        layer.lora_B["default"].weight.data.copy_(before[f"{path}.lora_b"])
    from peft.tuners.lora.intruders import reduce_intruder_dimension

    reduce_intruder_dimension(theirs, threshold_epsilon=0.8, logging_sink=None)
    IntruderReduction(threshold=0.8).after_stage(stage(experts))
    after = experts.state_dict("paint")
    for path in ("fc", "proj"):
        layer = theirs.get_submodule(f"base_model.model.{path}")
        reduced = layer.get_delta_weight("intruder_reduced")
        ours = 2.0 * after[f"{path}.lora_b"] @ after[f"{path}.lora_a"]
        assert_close(ours, reduced, atol=1e-4, rtol=1e-3)
    assert not torch.equal(after["fc.lora_b"], before["fc.lora_b"])
    assert torch.equal(after["proj.lora_b"], before["proj.lora_b"])  # it has no intruder


@pytest.mark.parametrize("merged", [False, True])
def test_the_weight_before_the_update_may_include_earlier_experts(merged: bool) -> None:
    experts = library("paint", "count")
    before = experts.state_dict("count")["fc.lora_b"]
    IntruderReduction(top_k=2, merged=merged).after_stage(stage(experts))
    # the update along the same directions was merged before: they are no intruders any more
    assert torch.equal(experts.tensors("count")["fc.lora_b"], before) == merged


def test_settings_out_of_range_are_refused() -> None:
    for settings in ({"top_k": 0}, {"threshold": 1.5}, {"factor": -1.0}):
        with pytest.raises(ValueError, match="top_k must be at least 1"):
            IntruderReduction(**settings)


def test_a_soft_prompt_is_refused() -> None:
    class Prompted(Model):
        def get_input_embeddings(self) -> nn.Module:
            return self.embed

    model = Prompted()
    model.embed = nn.Embedding(9, 8)
    experts = ExpertLibrary(model, lambda _: "language")
    experts.add_shapes("paint", {"embed": PromptShape(2)})
    with pytest.raises(ValueError, match="needs plain experts, expert 'paint' is a soft prompt"):
        IntruderReduction().before_stage(stage(experts))


def test_an_expert_that_mixes_several_is_refused() -> None:
    experts = ExpertLibrary(Model(), lambda _: "language")
    experts.add_shapes("paint", {"fc": ExpertShape(2, 4.0, branches=2)})
    with pytest.raises(ValueError, match="needs plain experts"):
        IntruderReduction().before_stage(stage(experts))
