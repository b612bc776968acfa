"""Versions of experts in routers: the newest one answers the samples of all of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dmole.routing import (
    AllExpertsRouter,
    AutoencoderRouter,
    CommonExpertRouter,
    CommonMixing,
    KeyRouter,
    OracleRouter,
    RouteQuery,
    Router,
    batch_vote,
    choose_partner,
    select_experts,
)
from dmole.routing.entries import rename_entry, take_out
from dmole.storage.versions import checked_updates, updates_among, without

LOSSES = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.9, 0.3, 0.2, 0.1], [0.9, 0.9, 0.2, 0.9]])
BOUNDS = torch.full((4,), 0.5)
NEWEST = [2, 1, 2, 3]
"""Column 2 is the next version of column 0."""


def test_versions_count_once_before_the_best_two_are_chosen() -> None:
    assert select_experts(LOSSES, BOUNDS, newest=NEWEST) == [(2, 1), (3, 2), (2,)]
    assert select_experts(LOSSES, BOUNDS) == [(0, 1), (3, 2), (2,)]


def test_the_second_ratio_compares_the_best_version() -> None:
    for losses in ([[0.4, 0.15, 0.1, 0.9]], [[0.1, 0.15, 0.4, 0.9]]):  # the new or the old one
        found = [
            select_experts(torch.tensor(losses), BOUNDS, newest=NEWEST, second_ratio=ratio)
            for ratio in (1.4, 1.6)
        ]
        assert found == [[(2,)], [(2, 1)]]


def test_partner_and_vote_are_newest_versions() -> None:
    assert choose_partner(LOSSES, BOUNDS, newest=NEWEST) == [2, 3, 2]
    assert batch_vote(LOSSES, BOUNDS, newest=NEWEST) == (2, 3)
    assert batch_vote(LOSSES, BOUNDS, newest=NEWEST, support=0.5) == (2,)


CENTERS = {"near": [9.0, 0, 0, 0], "far": [0, 9.0, 0, 0], "near-v2": [0, 0, 9.0, 0]}


def rows(name: str) -> torch.Tensor:
    noise = torch.randn(60, 4, generator=torch.Generator().manual_seed(len(name)))
    return 0.3 * noise + torch.tensor(CENTERS[name])


def fitted(router: Router) -> Router:
    router.set_vision_width(2)
    for name in CENTERS:
        router.fit(name, rows(name))
    router.add_update("near-v2", "near")
    return router


ROUTERS: dict[str, Callable[[], Router]] = {
    "loss": lambda: AutoencoderRouter(max_experts=1, components=2),
    "likelihood": lambda: AutoencoderRouter(max_experts=1, components=2, ranking="likelihood"),
    "keys": KeyRouter,
    "oracle": OracleRouter,
}


def order(router: Router, *experts: str) -> list[tuple[str, ...]]:
    samples = torch.stack([rows(name)[0] for name in CENTERS])
    return router.route(RouteQuery(samples, list(CENTERS), "test", None, experts)).order


@pytest.mark.parametrize("kind", ROUTERS)
def test_samples_of_both_versions_get_the_newest_one_that_is_there(
    kind: str, tmp_path: Path
) -> None:
    router = fitted(ROUTERS[kind]())
    assert order(router, *CENTERS) == [("near-v2",), ("far",), ("near-v2",)]
    assert order(router, "near", "far")[:2] == [("near",), ("far",)]  # an earlier stage
    router.save(tmp_path)
    loaded, restored = ROUTERS[kind](), ROUTERS[kind]()
    for other in (loaded, restored):
        other.set_vision_width(2)
    loaded.load(tmp_path)
    restored.load_state_dict(router.state_dict())
    for other in (loaded, restored):
        assert order(other, *CENTERS) == order(router, *CENTERS)


def test_no_version_of_the_expert_in_training_is_its_partner() -> None:
    router = fitted(AutoencoderRouter(components=2))
    sample = rows("near")[:1]

    def partners(current: str) -> list[tuple[str, ...]]:
        query = RouteQuery(sample, ["?"], "train", current, [*CENTERS, "new"])
        return router.route(query).order

    assert partners("near-v2") == [("near-v2",)]
    assert partners("new") == [("new", "near-v2")]


def test_without_its_newest_version_an_expert_answers_again() -> None:
    router = fitted(AutoencoderRouter(max_experts=1, components=2))
    take_out(router, "near-v2")
    assert order(router, "near", "far")[0] == ("near",)
    assert not router.updates
    assert without({"a-v2": "a", "a-v3": "a-v2"}, ["a"]) == {"a-v3": "a-v2"}


def test_a_renamed_version_stays_one() -> None:
    router = fitted(AutoencoderRouter(max_experts=1, components=2))
    rename_entry(router, "near-v2", "june")
    assert order(router, "near", "far", "june")[0] == ("june",)


def test_a_router_around_another_one_passes_versions_on(tmp_path: Path) -> None:
    router = fitted(CommonExpertRouter(KeyRouter(), CommonMixing()))
    assert order(router, "common", *CENTERS)[0] == ("near-v2", "common")
    router.save(tmp_path)
    assert json.loads((tmp_path / "router.json").read_text())["updates"] == {"near-v2": "near"}


def test_a_router_that_selects_no_experts_has_no_versions() -> None:
    with pytest.raises(ValueError, match="AllExpertsRouter does not select the experts of tasks"):
        AllExpertsRouter().add_update("b", "a")


@pytest.mark.parametrize(
    ("updates", "message"),
    [
        ({"b": "a", "c": "a"}, "two next versions"),
        ({"b": "a", "a": "b"}, "is a version of itself"),
        ({"a": "a"}, "is a version of itself"),
        ({"b": "../a"}, "updated expert"),
        ({"b": 1}, "updated expert"),
        ([1], "must hold names"),
    ],
)
def test_versions_of_a_stranger_are_checked(updates: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        checked_updates(updates)


def test_a_long_chain_of_versions_is_checked_in_one_pass() -> None:
    chain = {f"n{index + 1}": f"n{index}" for index in range(200_000)}  # a square would not end
    assert checked_updates(chain) == chain
    assert updates_among(["n1", "n2", "n4"], chain) == {"n2": "n1"}
    with pytest.raises(ValueError, match="is a version of itself"):
        checked_updates(chain | {"n0": "n200000"})
