"""Entries of a router: taken out, renamed and added without a change to the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dmole.routing import (
    AutoencoderRouter,
    BranchMixing,
    CommonExpertRouter,
    KeyRouter,
    LearningRouter,
    OracleRouter,
    RouteQuery,
    Router,
)
from dmole.routing.entries import add_entry, learned_part, rename_entry, take_out

WIDTH = 12
NAMES = ("first", "second", "third")


def samples_of(task: int, samples: int = 60) -> Tensor:
    """Return embeddings of a task that varies around its own mean."""
    generator = torch.Generator().manual_seed(task)
    mean = 3 * torch.randn(WIDTH, generator=generator)
    scale = 0.2 + torch.rand(WIDTH, generator=generator)
    return mean + scale * torch.randn(samples, WIDTH, generator=generator)


SAMPLES = {name: samples_of(index) for index, name in enumerate(NAMES)}
ROWS = torch.cat([rows[:20] for rows in SAMPLES.values()])


def fitted(make: Callable[[], Router], names: tuple[str, ...] = NAMES) -> Router:
    router = make()
    router.set_vision_width(WIDTH // 2)
    for name in names:
        router.fit(name, SAMPLES[name])
    return router


def autoencoder(**options: Any) -> Callable[[], Router]:
    settings = {"components": 4, "max_epochs": 30, "min_steps": 4, **options}
    return lambda: AutoencoderRouter(**settings)


ROUTERS = {
    "pca": autoencoder(),
    "mlp": autoencoder(reconstructor="mlp_linear", bias_init="mean"),
    "sigmoid": autoencoder(reconstructor="mlp_sigmoid", standardize=False),
    "likelihood": autoencoder(ranking="likelihood", std_floor=0.001),
    "relative": autoencoder(ranking="relative", max_experts=1),
    "key": KeyRouter,
    "common": lambda: CommonExpertRouter(autoencoder()(), BranchMixing()),
}


def query(router: Router, experts: tuple[str, ...]) -> RouteQuery:
    names = experts if router.common is None else (*experts, router.common)
    return RouteQuery(ROWS, ["?"] * len(ROWS), "test", None, names)


def check_equal(one: Router, other: Router, experts: tuple[str, ...]) -> None:
    """Assert that two routers give the same bits for samples among the same experts."""
    expected, found = (router.route(query(router, experts)) for router in (one, other))
    assert found.order == expected.order
    assert torch.equal(found.gates, expected.gates)
    assert (found.losses is None) == (expected.losses is None)
    if found.losses is not None and expected.losses is not None:
        assert torch.equal(found.losses, expected.losses)


@pytest.mark.parametrize("taken", NAMES)
@pytest.mark.parametrize("kind", ROUTERS)
def test_without_an_expert_the_others_decide_bit_for_bit_as_before(kind: str, taken: str) -> None:
    before, router = fitted(ROUTERS[kind]), fitted(ROUTERS[kind])
    take_out(router, taken)
    left = tuple(name for name in NAMES if name != taken)
    check_equal(before, router, left)
    inner, whole = learned_part(router), learned_part(before)
    assert inner is not None
    assert tuple(inner.tensors()) == left
    if isinstance(inner, AutoencoderRouter) and isinstance(whole, AutoencoderRouter):
        for name in left:
            assert inner.threshold(name) == whole.threshold(name)


@pytest.mark.parametrize("kind", ["pca", "mlp", "likelihood", "key"])
def test_an_edited_router_comes_back_from_its_files_bit_for_bit(kind: str, tmp_path: Any) -> None:
    router, loaded = fitted(ROUTERS[kind]), fitted(ROUTERS[kind], ())
    take_out(router, "first")
    router.save(tmp_path)
    loaded.load(tmp_path)
    check_equal(router, loaded, NAMES[1:])


@pytest.mark.parametrize("kind", ["pca", "likelihood", "key"])
def test_a_fit_after_the_first_expert_is_gone_uses_the_same_statistics(kind: str) -> None:
    before, router = fitted(ROUTERS[kind], NAMES[:2]), fitted(ROUTERS[kind], NAMES[:2])
    take_out(router, "first")
    for each in (before, router):
        each.fit("third", SAMPLES["third"])
    check_equal(before, router, NAMES[1:])


@pytest.mark.parametrize("kind", ["pca", "likelihood", "key", "common"])
def test_a_renamed_expert_keeps_its_place_and_its_decisions(kind: str) -> None:
    before, router = fitted(ROUTERS[kind]), fitted(ROUTERS[kind])
    rename_entry(router, "first", "other")
    expected = before.route(query(before, NAMES))
    found = router.route(query(router, ("other", *NAMES[1:])))
    assert torch.equal(found.gates, expected.gates)
    with pytest.raises(ValueError, match="the name 'third' is taken"):
        rename_entry(router, "second", "third")


@pytest.mark.parametrize("kind", ["pca", "mlp", "likelihood", "sigmoid", "key"])
def test_an_entry_that_was_taken_out_comes_back_bit_for_bit(kind: str) -> None:
    before, router = fitted(ROUTERS[kind]), fitted(ROUTERS[kind])
    take_out(router, "first")
    add_entry(router, "again", before, "first")
    expected = before.route(query(before, NAMES))
    found = router.route(query(router, ("again", *NAMES[1:])))  # the order of the columns is kept
    assert torch.equal(found.gates, expected.gates)


def test_an_entry_of_other_statistics_is_refused_and_changes_nothing() -> None:
    before, router = fitted(ROUTERS["pca"], NAMES[:2]), fitted(ROUTERS["pca"], NAMES[:2])
    other = fitted(ROUTERS["pca"], ("third", "first"))
    with pytest.raises(ValueError, match="has other statistics that all its experts share"):
        add_entry(router, "third", other, "third")
    check_equal(before, router, NAMES[:2])


def test_keys_have_no_statistics_and_are_taken_from_any_run() -> None:
    router = fitted(KeyRouter, NAMES[:2])
    add_entry(router, "third", fitted(KeyRouter, ("third", "first")), "third")
    check_equal(fitted(KeyRouter), router, NAMES)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ("key", "its router is KeyRouter, not AutoencoderRouter"),
        ("mlp", "its router is of {'reconstructor': 'mlp_linear'"),
    ],
)
def test_an_entry_of_another_kind_of_router_is_refused(other: str, message: str) -> None:
    router = fitted(ROUTERS["pca"])
    with pytest.raises(ValueError, match=message):
        add_entry(router, "new", fitted(ROUTERS[other]), "first")


def test_an_entry_without_covariance_is_refused_by_a_router_that_ranks_by_likelihood() -> None:
    options = {"standardize": False}
    router = fitted(autoencoder(ranking="likelihood", **options), NAMES[:2])
    with pytest.raises(ValueError, match="no covariance"):
        add_entry(router, "third", fitted(autoencoder(**options)), "third")


def test_routers_without_entries_are_left_as_they_are() -> None:
    router = OracleRouter()
    take_out(router, "first")
    rename_entry(router, "first", "other")
    asked = replace(query(router, ("second",)), task_names=["second"] * len(ROWS))
    assert router.route(asked).order[0] == ("second",)
    assert not isinstance(router, LearningRouter)
