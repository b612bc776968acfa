from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from dmole.regularizers import elastic_penalty, merge_importance

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
