"""Prototypes are singular vectors, weights are a softmax of dot products, as in peft."""

from __future__ import annotations

import doctest

import pytest
import torch
from peft.tuners.lora.arrow import ArrowLoraLinearLayer
from peft.tuners.lora.config import ArrowConfig
from torch import Tensor, nn
from torch.testing import assert_close

import dmole.routing.arrow
from dmole.experts import ExpertShape, GateContext, Gates, LoRAExpert, RoutedLinear
from dmole.experts.expert import expert_key
from dmole.routing import ArrowMixing, ArrowRouter, RouteQuery, arrow_prototype

NAMES = ("a", "b", "c")


def test_examples_in_the_docstrings_hold() -> None:
    result = doctest.testmod(dmole.routing.arrow)
    assert result.attempted
    assert result.failed == 0


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_the_prototype_is_the_first_right_singular_vector(rank: int) -> None:
    down, up = torch.randn(rank, 5), torch.randn(6, rank)
    prototype = arrow_prototype(down, up)
    expected = torch.linalg.svd(up.double() @ down.double()).Vh[0].float()
    assert_close(prototype * torch.sign(prototype @ expected), expected)


def test_an_update_of_rank_one_has_the_direction_of_its_row() -> None:
    down = torch.tensor([[3.0, 0.0, 4.0]])
    assert_close(arrow_prototype(down, torch.ones(2, 1)).abs(), torch.tensor([0.6, 0.0, 0.8]))


def linear(mixing: ArrowMixing) -> tuple[RoutedLinear, GateContext]:
    context = GateContext()
    made = RoutedLinear(nn.Linear(6, 4), context, "language", mixing=mixing, path="linear")
    for seed, name in enumerate(NAMES):
        generator = torch.Generator().manual_seed(seed)
        expert = LoRAExpert(made.base, ExpertShape(2, 4.0), generator)
        nn.init.normal_(expert.lora_b, generator=generator)
        made.experts[expert_key(name)] = expert
    return made.requires_grad_(False), context


def forward(made: RoutedLinear, context: GateContext, x: Tensor, gates: Tensor) -> Tensor:
    with torch.no_grad(), context.use(Gates(NAMES, gates)):
        return made(x)


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_the_output_is_that_of_peft(top_k: int) -> None:
    made, context = linear(ArrowMixing(top_k, temperature=0.5))
    x = torch.randn(2, 5, 6)
    config = ArrowConfig(top_k=top_k, router_temperature=0.5, rng_seed=0)
    config.task_adapter_names, config.gks_adapter_names = list(NAMES), []
    layer = ArrowLoraLinearLayer(6, config)
    down = nn.ModuleDict({n: nn.Linear(6, 2, bias=False) for n in NAMES})
    up = nn.ModuleDict({n: nn.Linear(2, 4, bias=False) for n in NAMES})
    for name in NAMES:
        down[name].weight.data = made.expert(name).lora_a
        up[name].weight.data = made.expert(name).up
    # by power iteration, whose 15 steps are not exact
    layer.register_buffer(
        "prototypes",
        torch.stack([arrow_prototype(down[n].weight, up[n].weight) for n in NAMES]),
    )
    with torch.no_grad():
        update = layer(x, down, up, nn.Identity(), dict.fromkeys(NAMES, 2.0))
    assert_close(forward(made, context, x, torch.ones(2, 3)), made.base(x) + update)


def test_experts_that_are_off_weigh_nothing_and_one_alone_weighs_one() -> None:
    made, context = linear(ArrowMixing())
    x = torch.randn(3, 5, 6)
    gates = torch.tensor([[1.0, 0, 0], [0, 1.0, 1.0], [0, 0, 0]])
    together = forward(made, context, x, gates)
    for row in range(3):
        alone = forward(made, context, x[row : row + 1], gates[row : row + 1])
        assert_close(together[row : row + 1], alone)
    expert = made.expert("a")
    plain = made.base(x[0]) + 2.0 * x[0] @ expert.lora_a.T @ expert.up.T
    assert_close(together[0], plain)
    assert_close(together[2], made.base(x[2]))


def test_a_prototype_is_computed_again_once_its_expert_has_changed() -> None:
    mixing = ArrowMixing()
    made, _ = linear(mixing)
    expert = made.expert("a")
    before = mixing._prototype(expert)
    assert mixing._prototype(expert) is before
    with torch.no_grad():
        expert.lora_a.copy_(torch.eye(2, 6))
    assert_close(mixing._prototype(expert), arrow_prototype(expert.lora_a, expert.up))


def test_all_newest_experts_are_used_and_training_uses_the_own_one() -> None:
    router = ArrowRouter()
    router.add_update("a-2", "a")
    query = RouteQuery(None, ["?"], "test", None, ["a", "b", "a-2"])
    assert router.route(query).order == [("a-2", "b")]
    training = RouteQuery(None, ["?"], "train", "b", ["a", "b"])
    assert router.route(training).order == [("b",)]


def test_errors_are_one_line() -> None:
    with pytest.raises(ValueError, match="top_k must be at least 1"):
        ArrowMixing(top_k=0)
    with pytest.raises(ValueError, match="temperature must be a positive number"):
        ArrowRouter(temperature=0)
    with pytest.raises(ValueError, match="ArrowMixing takes one expert per linear and task"):
        ArrowMixing().shape(2, 4.0, 2, common=False)
