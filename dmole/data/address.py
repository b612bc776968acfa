"""Parses the address of a source: location, split and limit."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

HUB = "hf://"
_LIMIT = re.compile(r"(.+)#(\d+)", re.DOTALL)
_SPLIT = re.compile(r"(.+)\?split=([\w.-]+)", re.DOTALL)
_HUB_KEYS = ("split", "config", "revision")


@dataclass(frozen=True)
class Address:
    """The address in ``train`` or ``test`` of a task.

    Args:
        base: A path, a pattern of paths, or an address without its options.
        options: ``split``, ``config`` and ``revision``, if given.
        limit: Maximum number of items; None means all.
    """

    base: str
    options: dict[str, str] = field(default_factory=dict)
    limit: int | None = None

    @classmethod
    def of(cls, text: str, data_root: Path, limit: int | None = None) -> Address:
        """Parse an address.

        Args:
            text: ``file#1000`` takes 1000 items; ``folder?split=validation`` names the split of a
                table; ``hf://org/name?split=train&config=c&revision=r`` is a data set of the hub.
            data_root: Folder of relative paths. If the whole text is an existing path, it is not
                parsed further.
            limit: Limit of the task; the smaller limit applies.

        Raises:
            ValueError: If an option of a hub address is unknown or given twice, or the limit is 0.
        """
        match = _LIMIT.fullmatch(text)
        if match is not None and not (data_root / text).exists():
            if int(match[2]) < 1:
                raise ValueError(f"{text}: the number of items must be at least 1")
            limit = min(int(match[2]), limit or int(match[2]))
            text = match[1]
        if text.startswith(HUB):
            return cls(text.split("?")[0], _hub_options(text), limit)
        match = _SPLIT.fullmatch(text)
        if match is not None and "://" not in text:
            return cls(match[1], {"split": match[2]}, limit)
        return cls(text, {}, limit)


def _hub_options(text: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for key, value in parse_qsl(urlsplit(text).query, keep_blank_values=True):
        if key not in _HUB_KEYS:
            raise ValueError(f"{text}: unknown option {key!r}; there are {', '.join(_HUB_KEYS)}")
        if key in options:
            raise ValueError(f"{text}: option {key!r} is given twice")
        if not value:
            raise ValueError(f"{text}: option {key!r} is empty")
        options[key] = value
    return options


def limited(items: Iterator[tuple[int, Any]], count: int, limit: int) -> Iterator[tuple[int, Any]]:
    """Yield a random subset of items, in their order.

    The subset depends on the two numbers alone, so it is the same in every process and for every
    seed of a run.

    Args:
        items: The items with their positions.
        count: Number of items.
        limit: Maximum number of items yielded.
    """
    if limit >= count:
        yield from items
        return
    chosen = iter(sorted(random.Random(f"{limit} of {count}").sample(range(count), limit)))
    following = next(chosen)
    for number, item in enumerate(items):
        if number == following:
            yield item
            following = next(chosen, -1)
            if following < 0:
                return
