from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from dmole.regularizers import ElasticWeights, elastic_penalty, merge_anchors, merge_importance

positive = st.floats(0.1, 5.0)
place = st.floats(-3.0, 3.0)


@given(a=positive, b=positive, c1=place, c2=place, strength=st.floats(0.0, 10.0))
def test_two_quadratics_meet_where_the_closed_form_says(
    a: float, b: float, c1: float, c2: float, strength: float
) -> None:
    # a/2 (x - c1)^2 was learnt, so that the anchor is c1 and the importance its curvature
    best = (strength * a * c1 + b * c2) / (strength * a + b)
    x = torch.tensor([best], dtype=torch.float64, requires_grad=True)
    anchor, curvature = torch.tensor([c1]).double(), torch.tensor([a]).double()
    penalty = elastic_penalty({"x": x}, {"x": anchor}, {"x": curvature})
    (strength * penalty + b / 2 * (x - c2).square().sum()).backward()
    assert_close(x.grad, torch.zeros(1, dtype=torch.float64), rtol=0, atol=1e-4)


def test_at_the_anchor_penalty_and_gradient_are_zero() -> None:
    theta = torch.randn(3, 4, requires_grad=True)
    penalty = elastic_penalty({"a": theta}, {"a": theta.detach().clone()}, {"a": torch.ones(3, 4)})
    penalty.backward()
    assert penalty == 0
    assert not theta.grad.any()


def test_the_gradient_is_importance_times_the_way_from_the_anchor() -> None:
    theta = {name: torch.randn(2, 3, requires_grad=True) for name in "ab"}
    anchors = {name: torch.randn(2, 3, requires_grad=True) for name in "ba"}
    importance = {name: torch.rand(2, 3) for name in "ab"}
    elastic_penalty(theta, anchors, importance).backward()
    for name in "ab":
        assert_close(theta[name].grad, importance[name] * (theta[name] - anchors[name]).detach())
        assert anchors[name].grad is None


def test_low_precision_parameters_are_compared_in_float32() -> None:
    theta, anchor = torch.ones(1).bfloat16(), torch.tensor([1.001])
    penalty = elastic_penalty({"a": theta}, {"a": anchor}, {"a": torch.ones(1)})
    assert_close(penalty, torch.tensor(0.5e-6), rtol=1e-3, atol=0)


def test_no_parameters_cost_nothing() -> None:
    assert elastic_penalty({}, {}, {}) == 0


def test_a_missing_name_is_refused_rather_than_left_free() -> None:
    one = torch.ones(1)
    with pytest.raises(ValueError, match=r"differ in \['b'\]"):
        elastic_penalty({"a": one, "b": one}, {"a": one}, {"a": one})
    with pytest.raises(ValueError, match=r"a has shapes \(1,\) and \(2,\)"):
        elastic_penalty({"a": one}, {"a": torch.ones(2)}, {"a": one})


def test_importance_fades_by_the_decay_and_adds_the_new_task() -> None:
    first = merge_importance({}, {"a": torch.ones(2)}, decay=0.5)
    second = merge_importance(first, {"a": torch.full((2,), 3.0), "b": torch.ones(1)}, decay=0.5)
    assert second["a"].tolist() == [3.5, 3.5]
    assert second["b"].tolist() == [1.0]
    third = merge_importance(second, {}, decay=0.5)
    assert third["a"].tolist() == [1.75, 1.75]
    assert first["a"].tolist() == [1.0, 1.0]


def test_a_sum_of_importances_is_a_decay_of_one() -> None:
    merged = merge_importance({"a": torch.ones(1)}, {"a": torch.ones(1)})
    assert merged["a"].item() == 2


def test_bad_merges_are_refused() -> None:
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\], got 1.5"):
        merge_importance({}, {}, decay=1.5)
    with pytest.raises(ValueError, match="a has shapes"):
        merge_importance({"a": torch.ones(2)}, {"a": torch.ones(3)})


@given(
    tasks=st.lists(st.tuples(st.one_of(st.just(0.0), positive), place), min_size=2, max_size=8),
    x=place,
)
def test_merged_penalties_are_the_sum_of_all(tasks: list[tuple[float, float]], x: float) -> None:
    theta = torch.tensor([x], requires_grad=True)
    pairs = [({"x": torch.tensor([a])}, {"x": torch.tensor([f])}) for f, a in tasks]
    expected = torch.stack([elastic_penalty({"x": theta}, *pair) for pair in pairs]).sum()
    (anchors, importance), rest = pairs[0], 0.0
    for new in pairs[1:]:
        anchors, between = merge_anchors(anchors, importance, *new)
        importance = merge_importance(importance, new[1])
        rest += between
    found = elastic_penalty({"x": theta}, anchors, importance) + rest
    size = sum(f for f, _ in tasks)  # an anchor of 3 has an error of 1e-7
    assert_close(found, expected, rtol=1e-5, atol=1e-5 * size)
    ours, theirs = (torch.autograd.grad(value, theta)[0] for value in (found, expected))
    assert_close(ours, theirs, rtol=1e-5, atol=3e-6 * size)


def test_equal_anchors_stay_as_they_are_and_entries_without_importance_follow_the_newest() -> None:
    anchor, zero = {"x": torch.full((100,), 0.1) + torch.rand(100)}, {"x": torch.zeros(100)}
    weights = [{"x": torch.rand(100)} for _ in range(2)]
    merged, rest = merge_anchors(anchor, weights[0], anchor, weights[1])
    assert torch.equal(merged["x"], anchor["x"])
    assert rest == 0
    newer = {"x": torch.rand(100)}
    assert torch.equal(merge_anchors(anchor, zero, newer, zero)[0]["x"], newer["x"])


def test_the_importance_is_the_mean_square_of_the_gradients_of_single_samples() -> None:
    slopes = torch.tensor([1.0, -2.0, 3.0])
    weight = torch.nn.Parameter(torch.tensor([4.0]))

    def samples(number: int, batch_size: int) -> Iterator[Any]:
        for rows in slopes[:number].split(batch_size):
            yield SimpleNamespace(rows=rows, real=len(rows), task_names="t", sample_ids="s")

    stage: Any = SimpleNamespace(
        parameters=lambda: {"w": weight},
        samples=samples,
        step=lambda batch: ((batch.rows * weight).mean(), None),
    )
    regularizer = ElasticWeights(coefficient=1.0, samples=2)
    regularizer.after_stage(stage)
    found = {key: value for key, value in regularizer.extra_tensors().items() if "w" in key}
    values = sorted(float(value) for value in found.values())
    assert values == [(1 + 4) / 2, 4.0]  # importance and anchor
