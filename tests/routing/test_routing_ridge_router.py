"""The sums of a ridge classifier give the regression on all samples, in any order of tasks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from dmole.routing import RidgeRouter, RouteQuery
from dmole.routing.entries import rename_entry, take_out

CENTERS = 3 * torch.eye(3, 6)
TASKS = {
    name: center + torch.randn(8, 6, generator=torch.Generator().manual_seed(seed))
    for seed, (name, center) in enumerate(zip("abc", CENTERS, strict=True))
}


def fitted(order: str = "abc") -> RidgeRouter:
    router = RidgeRouter(projection=16, ridge=0.1)
    router.set_vision_width(2)
    for name in order:
        router.fit(name, TASKS[name])
    return router


def route(router: RidgeRouter, rows: Tensor, experts: str = "abc") -> list[str]:
    query = RouteQuery(rows, ["?"] * len(rows), "test", None, list(experts))
    return ["".join(names) for names in router.route(query).order]


def test_the_classifier_is_the_regression_on_all_samples() -> None:
    router = fitted()
    features = router.features(torch.cat(list(TASKS.values())))  # (24, 16)
    labels = torch.eye(3, dtype=torch.float64).repeat_interleave(8, dim=0)  # (24, 3)
    gram = features.T @ features
    shift = 0.1 * gram.diagonal().mean() * torch.eye(16, dtype=torch.float64)
    assert_close(router.classifier(), torch.linalg.solve(gram + shift, features.T @ labels))


def test_the_order_of_tasks_does_not_matter() -> None:
    forward, backward = fitted("abc").classifier(), fitted("cab").classifier()
    assert_close(forward, backward[:, [1, 2, 0]])


def test_features_are_a_fixed_random_layer_of_both_unit_halves() -> None:
    router, rows = fitted(), torch.randn(4, 6)
    scaled = torch.cat([rows[:, :2] * 7, rows[:, 2:] * 0.1], dim=1)
    assert_close(router.features(rows), router.features(scaled), rtol=1e-5, atol=1e-6)
    assert (router.features(rows) >= 0).all()
    assert not torch.equal(RidgeRouter(16, seed=1).features(rows), router.features(rows))


def test_samples_go_to_the_expert_of_their_task() -> None:
    router = fitted()
    for name, center in zip("abc", CENTERS, strict=True):
        assert route(router, center[None]) == [name]
    assert route(router, CENTERS[:1], "bc") != ["a"]
    assert route(RidgeRouter(), CENTERS) == ["", "", ""]
    assert router.route(RouteQuery(None, ["?"], "train", "b", ["a", "b"])).order == [("b",)]


def test_an_expert_leaves_with_its_sum_and_others_keep_their_classes(tmp_path: Path) -> None:
    router = fitted()
    before = router.classifier().clone()
    take_out(router, "a")
    assert torch.equal(router.classifier(), before[:, 1:])
    rename_entry(router, "b", "x")
    assert route(router, CENTERS[1:], "xc") == ["x", "c"]
    router.save(tmp_path)
    other = RidgeRouter(projection=16, ridge=0.1)
    other.load(tmp_path)
    assert torch.equal(other.classifier(), router.classifier())


def test_errors_are_one_line() -> None:
    with pytest.raises(ValueError, match="projection must be at least 1"):
        RidgeRouter(projection=0)
    with pytest.raises(ValueError, match="ridge must be a positive number"):
        RidgeRouter(ridge=0)
    with pytest.raises(ValueError, match="'a' has no embeddings"):
        RidgeRouter().fit("a", torch.zeros(0, 6))
    with pytest.raises(ValueError, match="router of a: expected tensors of the shapes"):
        fitted().restore({"a": {"sum": torch.zeros(3)}})
