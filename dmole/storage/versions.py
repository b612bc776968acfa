"""Versions of experts: which expert continues which, and the newest one of each."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dmole.messages import excerpt
from dmole.storage.files import check_name
from dmole.storage.reading import read_json, refusing

UPDATES = "updates"
"""Key of the versions in a router's state and index."""


def checked_updates(updates: Any) -> dict[str, str]:
    """Return the version that each updated expert continues, after a check.

    Args:
        updates: Names of experts, each with the name of the version before it.

    Raises:
        ValueError: If it is not a mapping of names, an expert has two next versions, or an expert
            continues itself over others.
    """
    if not isinstance(updates, Mapping):
        raise ValueError(f"{UPDATES!r} must hold names of experts, got {excerpt(updates)}")
    for new, past in updates.items():
        check_name(new, "updated expert")
        check_name(past, "updated expert")
    if len(set(updates.values())) < len(updates):
        raise ValueError(f"an expert has two next versions: {excerpt(dict(updates))}")
    done: set[str] = set()
    for name in updates:
        seen: set[str] = set()
        while name in updates and name not in done:
            if name in seen:
                raise ValueError(f"expert {name!r} is a version of itself")
            seen.add(name)
            name = updates[name]
        done |= seen
    return dict(updates)


def updates_among(names: Iterable[str], updates: Mapping[str, str]) -> dict[str, str]:
    """Return the versions whose experts are both among some names.

    A run folder that anyone may have written can name any number of other experts.

    Example:
        >>> updates_among(["a", "a-v2"], {"a-v2": "a", "x": "y"})
        {'a-v2': 'a'}
    """
    known = set(names)
    return {new: past for new, past in updates.items() if new in known and past in known}


def newest_versions(experts: Iterable[str], updates: Mapping[str, str]) -> dict[str, str]:
    """Return the newest version of each expert among them.

    Args:
        experts: Names of experts; later versions may be missing.
        updates: The version that each updated expert continues.

    Example:
        >>> newest_versions(["a", "b", "a-v2"], {"a-v2": "a", "a-v3": "a-v2"})
        {'a': 'a-v2', 'b': 'b', 'a-v2': 'a-v2'}
    """
    newest = {name: name for name in experts}
    following = {past: new for new, past in updates.items()}
    for name in newest:
        version = name
        while version in following:
            version = following[version]
            if version in newest:
                newest[name] = version
    return newest


def versions_of(expert: str, updates: Mapping[str, str]) -> tuple[str, ...]:
    """Return an expert and the versions that it continues, newest first.

    Example:
        >>> versions_of("a-v2", {"a-v2": "a"})
        ('a-v2', 'a')
    """
    found = [expert]
    while found[-1] in updates:
        found.append(updates[found[-1]])
    return tuple(found)


def without(updates: Mapping[str, str], experts: Sequence[str]) -> dict[str, str]:
    """Return the versions without some experts; one after them continues the one before them.

    Example:
        >>> without({"a-v2": "a", "a-v3": "a-v2"}, ["a-v2"])
        {'a-v3': 'a'}
    """
    kept = {}
    for name in updates:
        past = next((v for v in versions_of(name, updates)[1:] if v not in experts), None)
        if name not in experts and past is not None:
            kept[name] = past
    return kept


def check_newest(run: Path, names: Sequence[str], updates: Mapping[str, str]) -> None:
    """Raise if an expert has a later version that stays, since its router entry leads there.

    Args:
        run: The run folder, for messages.
        names: Experts that are taken out or disabled.
        updates: The version that each updated expert continues.

    Raises:
        ValueError: If so; names both.
    """
    for new, past in updates.items():
        if past in names and new not in names:
            raise ValueError(
                f"the expert {past!r} of {run} was updated by {new!r}, which answers the samples "
                f"of both: take {new!r} out as well, or it alone"
            )


def check_past(
    run: Path, names: Sequence[str], off: Collection[str], updates: Mapping[str, str]
) -> None:
    """Raise if an expert is enabled that continues a disabled one, whose samples it answers too.

    Args:
        run: The run folder, for messages.
        names: Experts that are enabled.
        off: Experts that stay disabled.
        updates: The version that each updated expert continues.

    Raises:
        ValueError: If so; names both.
    """
    for name in names:
        if updates.get(name) in off:
            raise ValueError(
                f"the expert {name!r} of {run} continues {updates[name]!r}, which is disabled: "
                f"enable {updates[name]!r} as well, or it alone"
            )


def read_updates(run: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the version that each updated expert of a run continues, from its ``router.json``.

    Args:
        run: The run folder.
        names: Experts of the run; others are left out.

    Raises:
        ValueError: If the file is missing or cannot be read; names it.
    """
    index = run / "router" / "router.json"
    content = read_json(index, "router")
    with refusing(index, "router"):
        updates = checked_updates(content.get(UPDATES, {}) if isinstance(content, dict) else {})
    return updates_among(names, updates)
