from __future__ import annotations

import doctest
from pathlib import Path

import pytest
import torch

import dmole.routing.query
from dmole.routing import (
    AllExpertsRouter,
    AutoencoderRouter,
    OracleRouter,
    RouteQuery,
    Router,
    SharedRouter,
)

TASKS = ("red", "green", "blue")


def test_the_oracle_uses_the_expert_of_the_true_task() -> None:
    routing = OracleRouter().route(
        RouteQuery(None, ["green", "unseen", "red"], "test", None, TASKS)
    )
    assert routing.order == [("green",), (), ("red",)]
    assert OracleRouter().route(RouteQuery(None, ["x"], "train", "red", TASKS)).order == [("red",)]


def test_the_shared_router_always_uses_one_expert() -> None:
    router = SharedRouter()
    assert router.route(RouteQuery(None, ["x"], "test", None, [])).order == [()]
    assert router.route(RouteQuery(None, ["x"], "train", "blue", TASKS)).order == [("red",)]
    assert SharedRouter("blue").route(RouteQuery(None, ["x"], "test", None, TASKS)).order == [
        ("blue",)
    ]
    with pytest.raises(ValueError, match="shared expert 'pink'"):
        SharedRouter("pink").route(RouteQuery(None, ["x"], "train", "blue", TASKS))


def test_all_experts_are_summed_with_the_current_one_first() -> None:
    routing = AllExpertsRouter().route(RouteQuery(None, ["x", "y"], "train", "green", TASKS))
    assert routing.order == [("green", "red", "blue")] * 2
    assert torch.equal(routing.gates, torch.ones(2, 3))
    assert AllExpertsRouter().route(RouteQuery(None, ["x"], "test", None, TASKS)).order == [TASKS]


@pytest.mark.parametrize("router", [OracleRouter(), AllExpertsRouter(), AutoencoderRouter()])
def test_a_current_task_without_expert_is_refused_in_training(router: Router) -> None:
    with pytest.raises(ValueError, match="current expert 'pink'"):
        router.route(RouteQuery(None, ["x"], "train", "pink", TASKS))


@pytest.mark.parametrize("router", [OracleRouter(), AllExpertsRouter(), SharedRouter()])
def test_routers_that_learn_nothing_save_and_load(router: Router, tmp_path: Path) -> None:
    assert router.fit("red", torch.zeros(2, 2)) is None
    assert not router.needs(RouteQuery(None, (), "test", None, TASKS))
    router.save(tmp_path)
    router.load(tmp_path)
    router.load_state_dict(router.state_dict())


def test_the_example_of_the_query_holds() -> None:
    result = doctest.testmod(dmole.routing.query)
    assert result.attempted
    assert result.failed == 0


def test_a_query_without_an_embedding_for_each_sample_is_refused() -> None:
    query = RouteQuery(torch.zeros(2, 4), ["x", "y", "z"], "test", None, TASKS)
    with pytest.raises(ValueError, match=r"expected 3 embeddings, got \(2, 4\)"):
        query.require_embeddings()
