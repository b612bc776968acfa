"""How far two sequences differ, in time that 10,000 characters do not notice.

Both algorithms keep a whole column of the textbook table in the bits of one integer, so that a
step costs one pass over machine words rather than one over cells.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence


def _places(pattern: Sequence[Hashable]) -> dict[Hashable, int]:
    """Return for each element the bits of the positions where it stands."""
    lists: dict[Hashable, bytearray] = {}
    size = (len(pattern) + 7) // 8
    for position, element in enumerate(pattern):
        bits = lists.setdefault(element, bytearray(size))
        bits[position >> 3] |= 1 << (position & 7)
    return {element: int.from_bytes(bits, "little") for element, bits in lists.items()}


def edit_distance(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """Return how many insertions, deletions and replacements turn one sequence into the other.

    Args:
        first: A string or a list of words.
        second: Another.

    Source:
        Myers, 1999, https://doi.org/10.1145/316542.316550, as simplified by Hyyrö, 2003.

    Example:
        >>> edit_distance("kitten", "sitting")
        3
    """
    if not first or not second:
        return max(len(first), len(second))
    places = _places(first)
    everything = (1 << len(first)) - 1
    last = 1 << (len(first) - 1)
    rises, falls, distance = everything, 0, len(first)  # differences down the column
    for element in second:
        equal = places.get(element, 0)
        diagonal = equal | falls
        equal |= ((equal & rises) + rises) ^ rises
        right_up = falls | (everything & ~(equal | rises))
        right_down = rises & equal
        distance += bool(right_up & last) - bool(right_down & last)
        right_up = (right_up << 1) | 1
        right_down <<= 1
        rises = (right_down | ~(diagonal | right_up)) & everything
        falls = right_up & diagonal & everything
    return distance


def common_subsequence(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """Return the length of the longest sequence that both hold in order, gaps allowed.

    Args:
        first: A string or a list of words.
        second: Another.

    Source:
        Hyyrö, 2004, "Bit-parallel LCS-length computation revisited".

    Example:
        >>> common_subsequence("a man on a horse".split(), "a horse and a man".split())
        2
    """
    places = _places(first)
    everything = (1 << len(first)) - 1
    column = everything
    for element in second:
        matched = column & places.get(element, 0)
        column = ((column + matched) | (column - matched)) & everything
    return len(first) - column.bit_count()
