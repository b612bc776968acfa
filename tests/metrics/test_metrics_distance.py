from __future__ import annotations

from collections.abc import Hashable, Sequence

from hypothesis import given
from hypothesis import strategies as st
from rapidfuzz.distance import LCSseq, Levenshtein

TEXT = st.text("abc", max_size=90)
WORDS = st.lists(st.sampled_from(["a", "man", "horse", "é", "𝄞", "\ud800"]), max_size=30)


def table_distance(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    row = list(range(len(second) + 1))
    for i, one in enumerate(first, start=1):
        above, row = row, [i]
        for j, other in enumerate(second, start=1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (one != other)))
    return row[-1]


def table_subsequence(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    row = [0] * (len(second) + 1)
    for one in first:
        above, row = row, [0]
        for j, other in enumerate(second, start=1):
            row.append(above[j - 1] + 1 if one == other else max(above[j], row[-1]))
    return row[-1]


@given(TEXT, TEXT)
def test_both_equal_the_textbook_tables_on_texts(first: str, second: str) -> None:
    assert Levenshtein.distance(first, second) == table_distance(first, second)
    assert LCSseq.similarity(first, second) == table_subsequence(first, second)


@given(WORDS, WORDS)
def test_both_equal_the_textbook_tables_on_lists_of_words(
    first: list[str], second: list[str]
) -> None:
    assert Levenshtein.distance(first, second) == table_distance(first, second)
    assert LCSseq.similarity(first, second) == table_subsequence(first, second)


def test_texts_of_ten_thousand_characters_have_exact_distances() -> None:
    first, second = "ab" * 5000, "ba" * 5000
    assert Levenshtein.distance(first, second) == 2
    assert LCSseq.similarity(first, second) == 9999
