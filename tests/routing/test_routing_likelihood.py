"""A router that ranks by likelihood: what it saves, and what it refuses to load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dmole.routing import AutoencoderRouter, RouteQuery

TASKS = ("red", "green")
WIDTH = 12


def rows_of(task: str, count: int, seed: int = 0) -> Tensor:
    center = torch.randn(WIDTH, generator=torch.Generator().manual_seed(sum(task.encode())))
    return center + 0.2 * torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))


def build(ranking: str = "likelihood") -> AutoencoderRouter:
    return AutoencoderRouter(components=4, threshold_scale=4.0, ranking=ranking)  # type: ignore[arg-type]


def fitted(ranking: str = "likelihood") -> AutoencoderRouter:
    router = build(ranking)
    for task in TASKS:
        router.fit(task, rows_of(task, 40))
    return router


def order(router: AutoencoderRouter) -> list[tuple[str, ...]]:
    rows = torch.cat([rows_of(task, 10, seed=1) for task in TASKS])
    return router.route(RouteQuery(rows, ["?"] * 20, "test", None, TASKS)).order


def test_a_saved_router_routes_equally_and_can_be_continued(tmp_path: Path) -> None:
    router = fitted()
    router.save(tmp_path)
    copy = build()
    copy.load(tmp_path)
    assert order(copy) == order(router)
    assert {experts[0] for experts in order(copy)} == set(TASKS)
    for each in (router, copy):
        each.fit("late", rows_of("late", 40))
    saved, again = router.tensors(), copy.tensors()
    assert saved.keys() == again.keys()
    for expert, tensors in saved.items():
        assert {"task_mean", "task_factor", "task_rest"} <= tensors.keys()
        assert all(torch.equal(tensor, again[expert][key]) for key, tensor in tensors.items())


def test_a_router_of_another_ranking_saves_no_covariance_and_reads_past_one(tmp_path: Path) -> None:
    assert not any(key.startswith("task_") for key in fitted("loss").tensors()["red"])
    fitted().save(tmp_path)
    plain = build("loss")
    plain.load(tmp_path)
    assert order(plain) == order(fitted("loss"))


def test_likelihood_is_refused_where_the_router_was_fitted_without(tmp_path: Path) -> None:
    fitted("loss").save(tmp_path)
    with pytest.raises(ValueError, match="router of expert red: no covariance: fitted with") as e:
        build().load(tmp_path)
    assert "\n" not in str(e.value)


def without(name: str) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.__delitem__(name)


def put(name: str, tensor: Tensor) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.update({name: tensor})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without("task_mean"), "tensor task_mean is missing"),
        (without("task_factor"), "tensor task_factor is missing"),
        (without("task_rest"), "tensor task_rest is missing"),
        (put("task_mean", torch.zeros(3)), r"tensor task_mean has shape \(3,\), expected \(12,\)"),
        (put("task_factor", torch.zeros(4, 3)), r"tensor task_factor has shape \(4, 3\), expected"),
        (put("task_factor", torch.zeros(12)), r"tensor task_factor has shape \(12,\), expected"),
        (put("task_rest", torch.zeros(2)), r"tensor task_rest has shape \(2,\), expected \(1,\)"),
        (put("task_mean", torch.full((12,), torch.nan)), "tensor task_mean holds a number that"),
        (
            put("task_factor", torch.full((4, 12), torch.inf)),
            "task_factor holds a number that",
        ),
        (put("task_rest", torch.tensor([-1.0])), "tensor task_rest is negative"),
    ],
)
def test_tensors_that_are_no_covariance_are_named(
    damage: Callable[[dict[str, Tensor]], None], message: str, tmp_path: Path
) -> None:
    fitted().save(tmp_path)
    file = tmp_path / "green.safetensors"
    tensors = load_file(file)
    damage(tensors)
    save_file(tensors, file)
    router = build()
    with pytest.raises(ValueError, match=message) as caught:
        router.load(tmp_path)
    assert "green" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert router.fitted == ()


def test_relative_ranking_divides_by_the_threshold() -> None:
    router = build("relative")
    router.fit("red", rows_of("red", 40))
    router.fit("wide", rows_of("red", 40) + 0.3 * torch.randn(40, WIDTH))
    rows = rows_of("red", 20, seed=1)
    losses = router.losses(rows, ["red", "wide"])
    taus = torch.tensor([router.threshold("red"), router.threshold("wide")])
    found = router.route(RouteQuery(rows, ["?"] * 20, "test", None, ["red", "wide"])).order
    nearest = (losses / taus).argmin(dim=1).tolist()
    assert [experts[0] for experts in found if experts] == [
        ("red", "wide")[column] for column, experts in zip(nearest, found, strict=True) if experts
    ]
    assert nearest != losses.argmin(dim=1).tolist()


def test_an_unknown_ranking_is_refused() -> None:
    with pytest.raises(ValueError, match="ranking must be one of"):
        build("distance")
