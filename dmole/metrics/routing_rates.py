"""How well a router keeps tasks apart, from the counts of routing.csv."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

Count = tuple[int, str, str, int]
"""Stage, true task, gate set (names joined by ``+``, or ``base``), number of samples."""


def routing_rates(
    counts: Iterable[Count],
    owner: Mapping[str, str],
    learned_at: Mapping[str, int],
    common: str | None = None,
) -> dict[str, float | None]:
    """Return shares of test samples in percent; None where there are no such samples.

    ``own_first``: of the seen tasks' samples after the last stage, those whose first expert is
    their own task's. ``rejected``: those that went to the base model. ``foreign_too``: those that
    another task's expert accepted, alone or beside their own. ``unseen_accepted``: of the samples
    of tasks not yet learned, over all stages from the first, those that an expert accepted.

    Args:
        counts: Rows of routing.csv.
        owner: Expert of each task.
        learned_at: Stage that learns each task.
        common: Expert that all tasks share; it is nobody's and foreign to none.

    Example:
        >>> routing_rates([(1, "a", "a", 9), (1, "a", "base", 1)], {"a": "a"}, {"a": 1})
        {'own_first': 90.0, 'rejected': 10.0, 'foreign_too': 0.0, 'unseen_accepted': None}
    """
    rows = list(counts)
    last = max((stage for stage, *_ in rows), default=0)
    seen = [(task, gates.split("+"), n) for s, task, gates, n in rows if s == last > 0]
    seen = [(task, names, n) for task, names, n in seen if learned_at.get(task, last + 1) <= last]
    unseen = [
        (gates != "base", n)
        for stage, task, gates, n in rows
        if stage > 0 and learned_at.get(task, last + 1) > stage
    ]
    return {
        "own_first": _share((names[0] == owner[task], n) for task, names, n in seen),
        "rejected": _share((names == ["base"], n) for _, names, n in seen),
        "foreign_too": _share(
            (bool({*names} - {owner[t], common, "base"}), n) for t, names, n in seen
        ),
        "unseen_accepted": _share(unseen),
    }


def _share(marked: Iterable[tuple[bool, int]]) -> float | None:
    pairs = list(marked)
    total = sum(n for _, n in pairs)
    return 100.0 * sum(n for hit, n in pairs if hit) / total if total else None
