from __future__ import annotations

import json
import math
from typing import Any

import pytest

from dmole.metrics import summarize
from dmole.metrics.base import TaskScore
from dmole.metrics.counterparts import (
    COUNTERPARTS,
    OBEDIENCE,
    counterparts,
    counterparts_of_run,
    weighted_final_mean,
)

NAN = math.nan
MATRIX = [[1.0, 2.0, 3.0], [90.0, 5.0, 6.0], [85.0, 70.0, 9.0], [80.0, 75.0, 60.0]]


def values(stated: dict[str, Any]) -> list[float | None]:
    return [stated[name] for name in COUNTERPARTS]


def test_three_tasks_by_hand() -> None:
    stated = counterparts(MATRIX, sizes=[100, 300, 600], obedience=[90.0, 100.0])
    weighted = (100 * 80 + 300 * 75 + 600 * 60) / 1000
    expected = [215 / 3, weighted, (-10 + 5) / 3, (90 + 77.5 + 215 / 3) / 3, 95.0]
    assert values(stated) == pytest.approx(expected)
    assert stated["missing"] == {}
    ours = summarize(MATRIX, ["a", "b", "c"])
    assert stated["MFN"] == ours["Last"]
    assert stated["MAP"] == ours["MAA"]
    assert stated["BWT/T"] == pytest.approx(ours["BWT"] * 2 / 3)
    assert "divisor 3" in stated["definitions"]["BWT/T"]
    assert "divisor 2" in stated["definitions"]["MIF"]
    assert "divisor" not in counterparts(MATRIX)["definitions"]["MIF"]


def test_equal_test_sets_weigh_equally() -> None:
    assert counterparts(MATRIX, sizes=[7, 7, 7])["FAA"] == pytest.approx(215 / 3)


def test_tasks_that_are_not_learned_yet_do_not_count() -> None:
    during = counterparts(MATRIX[:3], sizes=[100, 300, 600], obedience=[50.0])
    assert values(during) == pytest.approx([77.5, 73.75, -2.5, (90 + 77.5) / 2, 50.0])


@pytest.mark.parametrize(
    ("matrix", "stages", "sizes", "missing"),
    [
        (
            [[1.0, 2.0]],
            [],
            [1, 1],
            dict.fromkeys(("BWT/T", "MAP", "MIF"), "no stage was trained"),
        ),
        (
            [[1.0, 2.0], [3.0, 4.0]],
            [[0, 1]],
            [1, 3],
            {
                "BWT/T": "no task was learned before the last stage",
                "MIF": "no metric of the learned tasks knows the form of the answers",
            },
        ),
        (
            [[1.0, 2.0], [NAN, 4.0], [5.0, 6.0]],
            [[0], [1]],
            None,
            {
                "FAA": "the numbers of test samples are unknown",
                "BWT/T": "a score that it needs is missing",
                "MAP": "a score that it needs is missing",
                "MIF": "no metric of the learned tasks knows the form of the answers",
            },
        ),
    ],
)
def test_a_figure_without_a_value_is_null_with_its_reason(
    matrix: list[list[float]],
    stages: list[list[int]],
    sizes: list[float] | None,
    missing: dict[str, str],
) -> None:
    stated = counterparts(matrix, stages, sizes)
    assert stated["missing"] == missing
    assert [name for name in COUNTERPARTS if stated[name] is None] == list(missing)
    assert list(stated["definitions"]) == list(COUNTERPARTS)
    json.dumps(stated, allow_nan=False)


def test_sizes_of_other_tasks_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 3 numbers of test samples"):
        weighted_final_mean(MATRIX, [1, 2])


def test_a_run_averages_the_obedience_of_each_learned_task_once() -> None:
    scores = {
        "a": TaskScore(80.0, [], {OBEDIENCE: 100.0}),
        "b": TaskScore(75.0, []),
        "c": TaskScore(60.0, [], {OBEDIENCE: 10.0}),  # not learned yet
    }
    tasks, sizes = ["a", "b", "c"], {"a": 1, "b": 3, "c": 5}
    stated = counterparts_of_run(MATRIX[:4], tasks, [[0], [1], [0]], sizes, scores)
    assert stated["MIF"] == 100.0
    assert stated["FAA"] == pytest.approx((80 + 3 * 75) / 4)
    assert counterparts_of_run(MATRIX[:2], tasks, [[0]], {"a": 1}, scores)["FAA"] is None
