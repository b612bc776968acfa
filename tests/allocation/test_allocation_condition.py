"""The allocator that reads condition numbers: closed forms and parity with PEFT."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dmole.allocation import ConditionAllocator, Unit
from dmole.allocation.condition import reciprocal_condition


def test_the_score_is_the_ratio_of_the_smallest_to_the_largest_singular_value() -> None:
    weight = torch.diag(torch.tensor([8.0, 4.0, 2.0]))
    assert reciprocal_condition(weight) == pytest.approx(0.25)
    assert reciprocal_condition(torch.eye(3)[:2]) == pytest.approx(1.0)
    assert reciprocal_condition(torch.ones(3, 3)) == pytest.approx(0.0, abs=1e-6)
    assert reciprocal_condition(torch.zeros(2, 2)) == 1.0
    with pytest.raises(ValueError, match="not finite"):
        reciprocal_condition(torch.tensor([[torch.nan]]))


def test_the_best_conditioned_linears_are_chosen_as_by_peft() -> None:
    helpers = pytest.importorskip("peft.helpers")
    torch.manual_seed(0)
    model = nn.ModuleDict({f"fc{i}": nn.Linear(6 + i, 5) for i in range(10)})
    with torch.no_grad():
        for index, layer in enumerate(model.values()):
            layer.weight[index % 5] *= 0.05 * (index + 1)
    theirs = helpers.find_kappa_target_modules(model, top_p=0.4, show_progress=False)
    units = [Unit(name, "language", (name,), sum(layer.weight.shape))
             for name, layer in model.items()]  # fmt: skip
    scores = {name: reciprocal_condition(layer.weight.detach()) for name, layer in model.items()}
    plan = ConditionAllocator(budget_fraction=0.4).allocate("paint", units, scores, first=True)
    assert {entry.unit for entry in plan.experts} == set(theirs["target_modules"])
    with pytest.raises(ValueError, match="needs condition numbers"):
        ConditionAllocator().allocate("paint", units, None, first=True)
