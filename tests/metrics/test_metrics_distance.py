from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from dmole.metrics.distance import common_subsequence, edit_distance

TEXT = st.text("abc", max_size=90)


def table_distance(first: str, second: str) -> int:
    row = list(range(len(second) + 1))
    for i, one in enumerate(first, start=1):
        above, row = row, [i]
        for j, other in enumerate(second, start=1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (one != other)))
    return row[-1]


def table_subsequence(first: str, second: str) -> int:
    row = [0] * (len(second) + 1)
    for one in first:
        above, row = row, [0]
        for j, other in enumerate(second, start=1):
            row.append(above[j - 1] + 1 if one == other else max(above[j], row[-1]))
    return row[-1]


@given(TEXT, TEXT)
def test_both_equal_the_textbook_tables(first: str, second: str) -> None:
    assert edit_distance(first, second) == table_distance(first, second)
    assert common_subsequence(first, second) == table_subsequence(first, second)


def test_ten_thousand_characters_take_less_than_a_second() -> None:
    first, second = "ab" * 5000, "ba" * 5000
    start = time.process_time()
    assert edit_distance(first, second) == 2
    assert common_subsequence(first, second) == 9999
    assert time.process_time() - start < 1.0
