from __future__ import annotations

from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dmole.routing import (
    batch_vote,
    choose_partner,
    gate_set_name,
    gates_from_order,
    select_experts,
)

LOSSES = torch.tensor([[0.3, 0.1, 0.2], [0.9, 0.9, 0.9], [0.5, 0.9, 0.4]])
THRESHOLDS = torch.tensor([0.6, 0.6, 0.3])


def test_the_two_smallest_under_their_threshold_are_on_best_first() -> None:
    assert select_experts(LOSSES, THRESHOLDS) == [(1, 2), (), (0,)]
    assert select_experts(LOSSES, THRESHOLDS, max_experts=1) == [(1,), (), (0,)]
    assert select_experts(LOSSES, THRESHOLDS, max_experts=3)[0] == (1, 2, 0)


def test_a_loss_at_the_threshold_is_not_below_it() -> None:
    assert select_experts(torch.tensor([[0.5]]), torch.tensor([0.5])) == [()]


def test_the_second_ratio_refuses_a_distant_second() -> None:
    assert select_experts(LOSSES, THRESHOLDS, second_ratio=1.5)[0] == (1,)
    assert select_experts(LOSSES, THRESHOLDS, second_ratio=2.5)[0] == (1, 2)


def test_ties_go_to_the_lower_column() -> None:
    assert select_experts(torch.full((1, 3), 0.1), torch.ones(3)) == [(0, 1)]


def test_a_partner_is_the_best_past_expert_or_none() -> None:
    assert choose_partner(LOSSES, THRESHOLDS) == [1, None, 0]
    assert choose_partner(torch.empty(2, 0), torch.empty(0)) == [None, None]


def test_the_batch_votes_with_its_valid_samples_only() -> None:
    losses = torch.tensor([[0.1, 0.9]] * 3 + [[0.9, 0.1]] + [[0.9, 0.9]] * 6)
    bound = torch.full((2,), 0.5)
    assert batch_vote(losses, bound, support=0.3) == (0,)
    assert batch_vote(losses, bound, support=0.25) == (0, 1)
    assert batch_vote(losses[4:], bound) == ()
    assert batch_vote(losses, bound, support=0.9, support_first=True) == ()


def test_gates_hold_one_where_an_expert_is_on() -> None:
    gates = gates_from_order([(1, 0), (), (2,)], 3)
    assert gates.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
    assert gates.dtype == torch.float32
    assert gates_from_order([(), ()], 0).shape == (2, 0)


def test_gate_sets_are_spelled_as_in_reports() -> None:
    assert gate_set_name(()) == "base"
    assert gate_set_name(("vqa", "caption")) == "vqa+caption"


@pytest.mark.parametrize(
    ("kwargs", "message"), [({"max_experts": 0}, "max_experts"), ({"second_ratio": 0.5}, "second")]
)
def test_bad_arguments_are_refused(kwargs: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select_experts(LOSSES, THRESHOLDS, **kwargs)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"thresholds \(E,\)"):
        select_experts(LOSSES, torch.ones(2))


matrices = st.integers(1, 5).flatmap(
    lambda e: st.tuples(
        st.lists(st.lists(st.integers(0, 6), min_size=e, max_size=e), min_size=1, max_size=8),
        st.lists(st.integers(0, 6), min_size=e, max_size=e),
    )
)


@given(matrices, st.integers(1, 3), st.randoms(use_true_random=False))
def test_a_samples_experts_do_not_depend_on_its_batch_mates(
    case: tuple[list[list[int]], list[int]], max_experts: int, random: Random
) -> None:
    losses, thresholds = (torch.tensor(part, dtype=torch.float32) for part in case)
    together = select_experts(losses, thresholds, max_experts=max_experts)
    alone = [select_experts(row[None], thresholds, max_experts=max_experts)[0] for row in losses]
    assert together == alone
    order = list(range(len(losses)))
    random.shuffle(order)
    shuffled = select_experts(losses[order], thresholds, max_experts=max_experts)
    assert shuffled == [together[i] for i in order]
    for row, chosen in zip(losses, together, strict=True):
        assert len(chosen) <= max_experts
        assert all(row[i] < thresholds[i] for i in chosen)
        rejected = [i for i in range(len(row)) if i not in chosen and row[i] < thresholds[i]]
        assert not rejected or len(chosen) == max_experts
        assert all(row[i] >= row[j] for i in rejected for j in chosen)
