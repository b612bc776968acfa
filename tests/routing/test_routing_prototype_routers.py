"""Prototypes are means, gates are a softmax of cosines, and no batch mate changes them."""

from __future__ import annotations

import doctest
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import dmole.routing.prototype_routers
from dmole.experts import Gates
from dmole.routing import (
    AnchorRouter,
    ArrowRouter,
    CommonExpertRouter,
    CommonMixing,
    RouteQuery,
)
from dmole.routing.prototype_routers import PrototypeRouter, TextPrototypeRouter
from dmole.routing.routers import route_by_name

EXPERTS = ("red", "blue")
RED = torch.tensor([[2.0, 0.0, 3.0, 0.0], [4.0, 0.0, 1.0, 0.0]])
BLUE = torch.tensor([[0.0, 1.0, 0.0, 5.0], [0.0, 3.0, 0.0, 1.0]])


def test_examples_in_the_docstrings_hold() -> None:
    result = doctest.testmod(dmole.routing.prototype_routers)
    assert result.attempted
    assert result.failed == 0


def fitted(router: PrototypeRouter) -> PrototypeRouter:
    router.set_vision_width(2)
    router.fit("red", RED)
    router.fit("blue", BLUE)
    return router


def query(rows: Tensor, experts: tuple[str, ...] = EXPERTS) -> RouteQuery:
    return RouteQuery(rows, ["?"] * len(rows), "test", None, experts)


def test_the_prototype_is_the_mean_of_the_text_or_of_both() -> None:
    text, both = fitted(TextPrototypeRouter()).tensors(), fitted(AnchorRouter()).tensors()
    assert text["red"]["prototype"].tolist() == [2.0, 0.0]
    assert both["red"]["prototype"].tolist() == [3.0, 0.0, 2.0, 0.0]


def test_gates_are_the_softmax_of_cosines_over_the_temperature() -> None:
    row = torch.tensor([[0.0, 2.0, 0.6, 0.8]])  # the text is between both tasks, the image is blue
    routing = fitted(TextPrototypeRouter()).route(query(row))
    heavy = 1 / (1 + math.exp(-(0.8 - 0.6) / 0.05))
    assert_close(routing.gates, torch.tensor([[1 - heavy, heavy]]))
    assert routing.order == [("blue", "red")]
    routing = fitted(AnchorRouter()).route(query(row))
    heavy = 1 / (1 + math.exp(-((0.8 + 1) / 2 - (0.6 + 0) / 2) / 0.1))
    assert_close(routing.gates, torch.tensor([[1 - heavy, heavy]]))
    assert routing.weights(EXPERTS) == [tuple(reversed(routing.gates[0].tolist()))]


@pytest.mark.parametrize("router", [TextPrototypeRouter(), AnchorRouter()])
def test_gates_do_not_depend_on_batch_mates(router: PrototypeRouter) -> None:
    rows = torch.randn(33, 4)
    together = fitted(router).route(query(rows)).gates
    alone = torch.cat([router.route(query(rows[i : i + 1])).gates for i in range(33)])
    assert torch.equal(together, alone)


def test_the_newest_version_has_the_similarity_of_the_nearest_one() -> None:
    router = fitted(TextPrototypeRouter(temperature=1.0))
    router.fit("red-2", BLUE.flip(1))
    router.add_update("red-2", "red")
    routing = router.route(query(torch.tensor([[0.0, 0.0, 3.0, 0.0]]), (*EXPERTS, "red-2")))
    assert routing.order == [("red-2", "blue")]
    heavy = 1 / (1 + math.exp(-1.0))
    assert_close(routing.gates, torch.tensor([[0.0, 1 - heavy, heavy]]))


def test_no_expert_leaves_the_average_where_its_weight_rounds_to_zero() -> None:
    router, cold = AnchorRouter(temperature=0.001), TextPrototypeRouter(temperature=0.001)
    for each in (router, cold):
        each.set_vision_width(2)
        each.fit("red", RED)
        each.fit("blue", BLUE)
    assert cold.route(query(RED)).order == [("red",), ("red",)]
    routing = router.route(query(RED))
    assert routing.order == [("red", "blue"), ("red", "blue")]
    gates = Gates(EXPERTS, routing.gates)
    gates.average_outside(())
    assert gates.of("x").weights.tolist() == [[0.5, 0.5], [0.5, 0.5]]


def test_training_uses_the_own_expert_and_no_prototype_is_the_base_model() -> None:
    router = fitted(AnchorRouter())
    training = RouteQuery(None, ["?"], "train", "blue", EXPERTS)
    assert router.route(training).order == [("blue",)]
    assert AnchorRouter().route(query(RED)).order == [(), ()]


def test_a_router_is_loaded_from_its_folder(tmp_path: Path) -> None:
    router, other = fitted(AnchorRouter()), AnchorRouter()
    router.save(tmp_path)
    other.load(tmp_path)
    other.set_vision_width(2)
    rows = torch.randn(5, 4)
    assert torch.equal(router.route(query(rows)).gates, other.route(query(rows)).gates)
    with pytest.raises(ValueError, match="router of red: expected a vector 'prototype'"):
        other.restore({"red": {"key": RED[0]}})
    with pytest.raises(ValueError, match="different lengths"):
        other.restore({"red": {"prototype": RED[0]}, "blue": {"prototype": RED[0, :2]}})


def test_errors_are_one_line() -> None:
    with pytest.raises(ValueError, match="temperature must be a positive number, got 0"):
        TextPrototypeRouter(temperature=0)
    with pytest.raises(ValueError, match="'red' has no embeddings"):
        AnchorRouter().fit("red", torch.zeros(0, 4))
    with pytest.raises(ValueError, match="selects none that joins the shared expert"):
        CommonExpertRouter(AnchorRouter(), CommonMixing())
    with pytest.raises(ValueError, match="ArrowRouter weighs experts within linears by its own"):
        CommonExpertRouter(ArrowRouter(), CommonMixing())


def test_weights_by_name_are_the_gates() -> None:
    routing = route_by_name([("b", "a"), (), ("a",)], ["a", "b"], weights=[(0.75, 0.25), (), ()])
    assert routing.gates.tolist() == [[0.25, 0.75], [0.0, 0.0], [1.0, 0.0]]
    assert routing.weights(["a", "b"]) == [(0.75, 0.25), (), ()]
