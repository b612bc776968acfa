"""The soft prompts of a sample: nearest by image and text, the current one always in training."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

import dmole.routing.prompt_router
from dmole.routing import PromptRouter, RouteQuery, guidance

IMAGE, TEXT = 2, 2
EXPERTS = ("a", "b", "c")
DIRECTIONS = {  # image and text of the samples of each expert's task
    "a": [1.0, 0.0, 1.0, 0.0],
    "b": [0.0, 1.0, 1.0, 0.0],
    "c": [0.0, 1.0, 0.0, 1.0],
}


def make_router(*fitted: str, **options: float) -> PromptRouter:
    router = PromptRouter(**options)  # type: ignore[arg-type]
    router.set_vision_width(IMAGE)
    for name in fitted:
        router.fit(name, torch.tensor([DIRECTIONS[name]]) * torch.tensor([[2.0], [5.0]]))
    return router


def query(rows: list[list[float]], current: str | None = None) -> RouteQuery:
    phase = "test" if current is None else "train"
    return RouteQuery(torch.tensor(rows), ["?"] * len(rows), phase, current, EXPERTS)


def test_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(dmole.routing.prompt_router).failed == 0


def test_the_similarity_weighs_the_cosines_of_image_and_text() -> None:
    rows = torch.tensor([[3.0, 4.0, 0.0, 2.0]])  # cosines 0.6 and 0.8 to the axes; 0 and 1
    prototypes = torch.tensor([DIRECTIONS[name] for name in EXPERTS])
    assert_close(guidance(rows, prototypes, IMAGE, 0.5), torch.tensor([[0.3, 0.4, 0.9]]))
    assert_close(guidance(rows, prototypes, IMAGE, 1.0), torch.tensor([[0.6, 0.8, 0.8]]))
    assert_close(guidance(rows, prototypes, IMAGE, 0.0), torch.tensor([[0.0, 0.0, 1.0]]))


@pytest.mark.parametrize(("top_k", "chosen"), [(1, ["c"]), (2, ["c", "b"]), (9, ["c", "b", "a"])])
def test_at_test_the_nearest_are_used_best_first(top_k: int, chosen: list[str]) -> None:
    router = make_router(*EXPERTS, top_k=top_k)
    assert router.route(query([[3.0, 4.0, 0.0, 2.0]])).order == [tuple(chosen)]


def test_training_uses_the_current_expert_and_the_nearest_past_ones() -> None:
    router = make_router("a", "b", top_k=2)
    order = router.route(query([[1.0, 0.1, 1.0, 0.0], [0.1, 1.0, 1.0, 0.0]], "c")).order
    assert order == [("c", "a"), ("c", "b")]


def test_nothing_is_compared_where_nothing_is_left_to_choose() -> None:
    alone, few = make_router("a", "b", top_k=1), make_router("a", "b", top_k=3)
    assert not alone.needs(query([[0.0] * 4], "c"))
    assert alone.route(query([[0.0] * 4], "c")).order == [("c",)]
    assert not few.needs(query([[0.0] * 4], "c"))
    assert few.route(query([[0.0] * 4], "c")).order == [("c", "a", "b")]
    assert make_router().route(query([[0.0] * 4])).order == [()]


def test_a_new_version_stands_for_the_old_one_and_does_not_train_with_it() -> None:
    router = make_router("a", "b", "c", top_k=3)
    router.add_update("c", "a")
    assert router.route(query([[1.0, 0.0, 1.0, 0.0]])).order == [("b", "c")]
    assert router.route(query([[1.0, 0.0, 1.0, 0.0]], "c")).order == [("c", "b")]


def test_a_saved_router_routes_the_same_and_is_no_other_router(tmp_path: Path) -> None:
    router, other = make_router(*EXPERTS, top_k=2), make_router(top_k=2)
    router.save(tmp_path)
    other.load(tmp_path)
    rows = query(torch.randn(5, IMAGE + TEXT).tolist())
    assert other.route(rows).order == router.route(rows).order


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"image_weight": 1.5}, r"image_weight must be in \[0, 1\], got 1.5"),
    ],
)
def test_arguments_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_router(**options)
