from __future__ import annotations

import doctest

from dmole.metrics import routing_rates as module
from dmole.metrics.routing_rates import routing_rates

OWNER = {"a": "a", "b": "b", "c": "c"}
LEARNED = {"a": 1, "b": 2, "c": 3}


def test_docstring_examples_hold() -> None:
    result = doctest.testmod(module)
    assert result.attempted
    assert result.failed == 0


def test_rates_count_correct_rejected_foreign_and_unseen_samples() -> None:
    counts = [
        (0, "a", "base", 10),
        (1, "a", "a", 10),
        (1, "b", "a", 1),
        (1, "b", "base", 9),
        (1, "c", "base", 10),
        (2, "a", "a", 6),
        (2, "a", "b+a", 2),
        (2, "a", "base", 2),
        (2, "b", "b+a", 5),
        (2, "b", "b", 5),
        (2, "c", "a", 4),
        (2, "c", "base", 6),
    ]
    rates = routing_rates(counts, OWNER, LEARNED)
    assert rates["own_first"] == 100 * 16 / 20
    assert rates["rejected"] == 100 * 2 / 20
    assert rates["foreign_too"] == 100 * 7 / 20
    assert rates["second_expert"] == 100 * 7 / 20
    assert rates["unseen_accepted"] == 100 * 5 / 30


def test_without_training_nothing_is_seen() -> None:
    rates = routing_rates([(0, "a", "base", 10)], OWNER, LEARNED)
    assert set(rates.values()) == {None}


def test_a_foreign_expert_alone_is_no_second_expert() -> None:
    counts = [(1, "a", "a+b", 9), (2, "a", "b", 3), (2, "b", "b+a", 1), (2, "c", "a+b", 9)]
    rates = routing_rates(counts, OWNER, LEARNED)
    assert rates["foreign_too"] == 100.0
    assert rates["second_expert"] == 25.0  # the first stage and the unseen task do not count


def test_an_expert_that_all_tasks_share_is_foreign_to_none() -> None:
    counts = [(2, "a", "a+common", 3), (2, "b", "a+common", 1)]
    rates = routing_rates(counts, {"a": "a", "b": "b"}, {"a": 1, "b": 2}, common="common")
    assert rates["foreign_too"] == 25.0
    assert rates["own_first"] == 75.0
    assert rates["second_expert"] == 0.0
