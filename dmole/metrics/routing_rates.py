"""Routing rates: how well a router separates tasks, from the counts of routing.csv."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

Count = tuple[int, str, str, int]
"""Stage, true task, gate set (names joined by ``+``, or ``base``), number of samples."""


def routing_rates(
    counts: Iterable[Count],
    owner: Mapping[str, str],
    learned_at: Mapping[str, int],
    common: str | None = None,
) -> dict[str, float | None]:
    """Return shares of test samples in percent; None if there are no such samples.

    All but the last are shares of the samples of seen tasks after the last stage. ``own_first``:
    the first expert is that of the sample's task. ``rejected``: the sample goes to the base model.
    ``foreign_too``: the expert of another task accepts the sample, alone or in addition.
    ``second_expert``: see `second_expert_rate`. ``unseen_accepted`` is a share of the samples of
    tasks not yet learned, over all stages from the first: an expert accepts the sample.

    Args:
        counts: Rows of routing.csv.
        owner: Expert of each task.
        learned_at: Stage that learns each task.
        common: Expert shared by all tasks; it never counts as the expert of another task.

    Example:
        >>> rates = routing_rates([(1, "a", "a", 9), (1, "a", "base", 1)], {"a": "a"}, {"a": 1})
        >>> rates["own_first"], rates["rejected"], rates["unseen_accepted"]
        (90.0, 10.0, None)
    """
    rows = list(counts)
    seen = _seen_last(rows, learned_at)
    unseen = [
        (gates != "base", n)
        for stage, task, gates, n in rows
        if stage > 0 and learned_at.get(task, stage + 1) > stage
    ]
    return {
        "own_first": _share((names[0] == owner[task], n) for task, names, n in seen),
        "rejected": _share((names == ["base"], n) for _, names, n in seen),
        "foreign_too": _share(
            (bool({*names} - {owner[t], common, "base"}), n) for t, names, n in seen
        ),
        "second_expert": second_expert_rate(rows, learned_at, common),
        "unseen_accepted": _share(unseen),
    }


def second_expert_rate(
    counts: Iterable[Count], learned_at: Mapping[str, int], common: str | None = None
) -> float | None:
    """Return the share of test samples in percent that use more than one expert.

    Args:
        counts: Rows of routing.csv.
        learned_at: Stage that learns each task.
        common: Expert shared by all tasks, which does not count.

    Returns:
        The share of the samples of seen tasks after the last stage; None if there are none.

    Example:
        >>> second_expert_rate([(1, "a", "a", 9), (1, "a", "a+b", 1)], {"a": 1})
        10.0
    """
    seen = _seen_last(counts, learned_at)
    return _share((len({*names} - {common, "base"}) > 1, n) for _, names, n in seen)


def _seen_last(
    counts: Iterable[Count], learned_at: Mapping[str, int]
) -> list[tuple[str, list[str], int]]:
    """Return task, names of the gate set and count of the samples of seen tasks at the end."""
    rows = list(counts)
    last = max((stage for stage, *_ in rows), default=0)
    return [
        (task, gates.split("+"), n)
        for stage, task, gates, n in rows
        if stage == last > 0 and learned_at.get(task, last + 1) <= last
    ]


def partner_rate(counts: Iterable[Count], trains: Mapping[int, Collection[str]]) -> float | None:
    """Return the share of training samples in percent that also used a past expert.

    Args:
        counts: Samples of each stage by the gate set that they trained with, once for each epoch.
        trains: Experts that each stage trains.

    Returns:
        The share over all stages after the first; None if there is none.

    Example:
        >>> partner_rate([(1, "a", "a", 9), (2, "b", "b+a", 1), (2, "b", "b", 3)], {2: ["b"]})
        25.0
    """
    return _share(
        (bool({*gates.split("+")} - {*trains[stage], "base"}), n)
        for stage, _, gates, n in counts
        if stage > 1
    )


ACTIVATIONS = ("own", "other", "base", "second")
"""Kinds of use of experts, see `activation_shares`."""


def activation_shares(
    counts: Iterable[Count], stage: int, owner: Mapping[str, str], common: str | None = None
) -> dict[str, dict[str, float]]:
    """Return which experts the test samples of each learned task use after a stage.

    Args:
        counts: Rows of routing.csv.
        stage: Index of the stage.
        owner: Expert of each learned task.
        common: Expert shared by all tasks, which does not count.

    Returns:
        By task, shares of its samples in percent. ``own``: the expert of the task, alone or with
        another. ``other``: only experts of other tasks. ``base``: no expert. ``second``: more than
        one expert.

    Example:
        >>> activation_shares([(2, "a", "a+b", 1), (2, "a", "b", 3)], 2, {"a": "a"})
        {'a': {'own': 25.0, 'other': 75.0, 'base': 0.0, 'second': 25.0}}
    """
    rows: dict[str, list[tuple[set[str], int]]] = {}
    for at, task, gates, n in counts:
        if at == stage and task in owner:
            rows.setdefault(task, []).append(({*gates.split("+")} - {common, "base"}, n))
    return {
        task: {
            "own": _share((owner[task] in names, n) for names, n in row) or 0.0,
            "other": _share((bool(names) and owner[task] not in names, n) for names, n in row)
            or 0.0,
            "base": _share((not names, n) for names, n in row) or 0.0,
            "second": _share((len(names) > 1, n) for names, n in row) or 0.0,
        }
        for task, row in rows.items()
    }


def _share(marked: Iterable[tuple[bool, int]]) -> float | None:
    pairs = list(marked)
    total = sum(n for _, n in pairs)
    return 100.0 * sum(n for hit, n in pairs if hit) / total if total else None
