from __future__ import annotations

import doctest

import pytest

import dmole.allocation.budget
from dmole.allocation import experts_by_depth

GROUPS = [2, 4, 6, 8]


def test_examples_in_the_docstrings_hold() -> None:
    result = doctest.testmod(dmole.allocation.budget)
    assert result.attempted
    assert result.failed == 0


def test_a_model_of_32_blocks_has_eight_of_each() -> None:
    assert experts_by_depth(GROUPS, 32) == [2] * 8 + [4] * 8 + [6] * 8 + [8] * 8


@pytest.mark.parametrize("depth", range(4, 50))
def test_groups_keep_their_order_and_differ_by_one_layer_at_most(depth: int) -> None:
    found = experts_by_depth(GROUPS, depth)
    sizes = [found.count(count) for count in GROUPS]
    assert found == sorted(found)
    assert sum(sizes) == depth
    assert max(sizes) - min(sizes) <= 1


def test_few_layers_keep_the_first_and_the_last_group() -> None:
    assert experts_by_depth(GROUPS, 3) == [2, 6, 8]
    assert experts_by_depth(GROUPS, 2) == [2, 8]
    assert experts_by_depth(GROUPS, 1) == [4]
    assert experts_by_depth([8, 1, 2, 3, 4, 5, 9], 3) == [8, 3, 9]


def test_one_group_is_the_same_everywhere() -> None:
    assert experts_by_depth([5], 3) == [5, 5, 5]


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"counts must be positive, at least one, got \[\]"):
        experts_by_depth([], 4)
    with pytest.raises(ValueError, match=r"got \[2, 0\]"):
        experts_by_depth([2, 0], 4)
    with pytest.raises(ValueError, match="depth must be at least 1, got 0"):
        experts_by_depth(GROUPS, 0)
