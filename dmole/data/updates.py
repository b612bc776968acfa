"""Tasks that continue an earlier task on new data, and the names of their versions."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dmole.data.task import Task

_VERSION = re.compile(r"(?P<task>.+)-v(?P<number>[0-9]+)")


def predecessors(tasks: Sequence[Task]) -> dict[str, str]:
    """Return the version that each updating task continues: the newest one before it.

    Args:
        tasks: The tasks, in order.

    Raises:
        ValueError: If the name of an updating task is not ``<task>-v<N>``, no earlier task has that
            name, ``N`` is not the number of its next version, or the task is only evaluated;
            names the task and, if possible, the name it should have. A number is passed over if a
            task that is no update has the name.

    Example:
        >>> from dmole.data import Task
        >>> first = Task("receipts", train="may.json", test="test.json")
        >>> predecessors([first, Task("receipts-v2", train="june.json", update=True)])
        {'receipts-v2': 'receipts'}
    """
    others = {task.name.casefold() for task in tasks if not task.update}
    found: dict[str, str] = {}
    newest: dict[str, tuple[str, int]] = {}  # by first version
    for task in tasks:
        if not task.update:
            newest[task.name] = (task.name, 1)
            continue
        first = _first_version(task.name, newest)
        past, number = newest[first]
        number = _next_number(first, number, others)
        expected = f"{first}-v{number}"
        if task.name != expected:
            raise ValueError(
                f"task {task.name!r} has update: true: as the next version of {past!r} it is named "
                f"{expected!r}"
            )
        if any(other.name == first and other.eval_only for other in tasks):
            raise ValueError(f"task {task.name!r} cannot update {first!r}, which is eval_only")
        found[task.name] = past
        newest[first] = (task.name, number)
    return found


def next_version(first: str, names: Sequence[str]) -> str:
    """Return the name of the next version of a task.

    Args:
        first: Name of the task, as it was first learned.
        names: Names of all tasks and versions.

    Example:
        >>> next_version("receipts", ["receipts", "paint", "receipts-v2"])
        'receipts-v3'
    """
    return f"{first}-v{_next_number(first, 1, {name.casefold() for name in names})}"


def _next_number(first: str, number: int, names: Collection[str]) -> int:
    """Return the first number after another one whose version is not among names in lower case."""
    number += 1
    while f"{first}-v{number}".casefold() in names:
        number += 1
    return number


def _first_version(name: str, known: Mapping[str, object]) -> str:
    """Return the task that a name, ``<task>-v<N>`` or that of the task itself, is a version of."""
    if name in known:
        return name
    match = _VERSION.fullmatch(name)
    if match is None:
        raise ValueError(
            f"task {name!r} has update: true, so its name must be that of an earlier task with the "
            "number of the version, such as 'receipts-v2'"
        )
    if match["task"] not in known:
        raise ValueError(
            f"task {name!r} has update: true, but no task {match['task']!r} comes before it"
        )
    return match["task"]
