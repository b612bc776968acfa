"""Takes the entry of an expert out of a fitted router, renames it, or adds one of another router.

The entries of `AutoencoderRouter` share the statistics of the standardization, which the entry of
the first expert holds. They stay what they are in every edit, so that no loss and no threshold of
another expert changes by a bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor

from dmole.routing.generative import SHARED_PREFIX, GenerativeRouter
from dmole.routing.routers import LearningRouter, Router
from dmole.storage.versions import without

SHARED = ("mean", "std", "gram")
"""Tensors in the entry of the first expert that belong to all experts, beside the prefixed ones."""

Entry = dict[str, Tensor]
T = TypeVar("T")


def learned_part(router: Router) -> LearningRouter | None:
    """Return the router that has an entry for each expert; None if there is none.

    That is the router itself, or the one inside a `CommonExpertRouter`.
    """
    inner = getattr(router, "router", router)
    return inner if isinstance(inner, LearningRouter) else None


def take_out(router: Router, *experts: str) -> None:
    """Forget experts; the statistics that all experts share stay.

    Args:
        router: A fitted router; one without entries is left as it is.
        experts: Names; those without an entry are left out. If one is the newest version of an
            expert, the version before it is used again.
    """
    learned = learned_part(router)
    if learned is not None:
        shared, entries = _split(learned)
        _restore(learned, shared, {k: v for k, v in entries.items() if k not in experts})
    router.updates = without(router.updates, experts)


def rename_entry(router: Router, old: str, new: str) -> None:
    """Give the entry of an expert another name, in the same place.

    Raises:
        ValueError: If the new name is taken.
    """
    learned = learned_part(router)
    if learned is not None:
        shared, entries = _split(learned)
        _restore(learned, shared, renamed(entries, old, new))
    pairs = ((new if k == old else k, new if v == old else v) for k, v in router.updates.items())
    router.updates = dict(pairs)


def add_entry(router: Router, name: str, source: Router, saved_as: str) -> None:
    """Add the entry that another router has for an expert.

    Args:
        router: Receives the entry, after all others.
        name: Name of the expert there.
        source: Has the entry.
        saved_as: Name of the expert in the source.

    Raises:
        ValueError: If the routers are of different kinds or standardize with different
            statistics, so that their losses cannot be compared, if the source has no entry of
            the expert, or if the name is taken.
    """
    mine, other = learned_part(router), learned_part(source)
    if mine is None or other is None or type(mine) is not type(other):
        raise ValueError(f"its router is {type(source).__name__}, not {type(router).__name__}")
    if mine.kind() != other.kind():
        raise ValueError(f"its router is of {other.kind()}, not of {mine.kind()}")
    (shared, entries), (statistics, others) = _split(mine), _split(other)
    if saved_as not in others:
        raise ValueError(f"its router has no entry for {saved_as!r}")
    if name in entries:
        raise ValueError(f"the router has an entry for {name!r} already")
    if isinstance(mine, GenerativeRouter):
        raise ValueError("its router has another adapter, which knows the names of its experts")
    if entries and not _equal(shared, statistics):
        raise ValueError(
            "its router has other statistics that all its experts share (those of its own tasks), "
            "so the two routers cannot be compared"
        )
    _restore(mine, statistics, {**entries, name: others[saved_as]})


def renamed(entries: Mapping[str, T], old: str, new: str) -> dict[str, T]:
    """Return entries in the same order, one of them under another name if it is there.

    Raises:
        ValueError: If the new name is taken.

    Example:
        >>> renamed({"a": 1, "b": 2}, "a", "c")
        {'c': 1, 'b': 2}
    """
    if new in entries:
        raise ValueError(f"the name {new!r} is taken")
    return {new if name == old else name: entry for name, entry in entries.items()}


def _split(router: LearningRouter) -> tuple[Entry, dict[str, Entry]]:
    """Return the tensors that all experts share, and the entry of each expert without them."""
    entries = {name: dict(tensors) for name, tensors in router.tensors().items()}
    shared: Entry = {}
    for tensors in entries.values():
        found = [key for key in tensors if key in SHARED or key.startswith(SHARED_PREFIX)]
        shared |= {key: tensors.pop(key) for key in found}
    return shared, entries


def _restore(router: LearningRouter, shared: Entry, entries: dict[str, Entry]) -> None:
    """Set the entries of a router; the first one receives what all share."""
    for name in list(entries)[:1]:
        entries[name] = entries[name] | shared
    router.restore(entries)


def _equal(one: Entry, other: Entry) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
