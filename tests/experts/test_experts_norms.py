"""Norms of updates without the product of their factors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dmole.experts.expert import LoRAExpert
from dmole.experts.norms import squared_norm
from dmole.experts.shape import ExpertShape


@pytest.mark.parametrize(
    "shape", [ExpertShape(3, 6.0), ExpertShape(2, 5.0, branches=4), ExpertShape(4, 4.0, heads=2)]
)
def test_the_norm_is_that_of_the_product(shape: ExpertShape) -> None:
    generator = torch.Generator().manual_seed(0)
    expert = LoRAExpert(nn.Linear(7, 5), shape, generator)
    assert squared_norm(expert).item() == 0.0  # a new expert changes nothing
    for name, parameter in expert.named_parameters():
        if name.startswith("lora_b"):
            nn.init.normal_(parameter, generator=generator)
    down, ups = expert.lora_a.detach(), expert.up.detach().split(shape.rank, dim=1)
    dense = sum(float((expert.scaling * up @ down).double().square().sum()) for up in ups)
    assert squared_norm(expert).item() == pytest.approx(dense, rel=1e-5)


def test_a_router_alone_changes_no_weight() -> None:
    router = LoRAExpert(
        nn.Linear(7, 5), ExpertShape(0, 0.0, branches=0, heads=2), torch.Generator()
    )
    assert squared_norm(router).item() == 0.0
