"""Values that take the place of others in files of a run."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch

DEEP: Any = 1
for _ in range(90):
    DEEP = [DEEP]

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 0.5, -0.0, 1e308, 10**15, 2**63 - 1, 2**63, 10**400),
    *(float("nan"), float("inf"), float("-inf"), "", "x", "1", "nan", " ", "a" * 5000, "a." * 5000),
    *(
        "\x1b[31m",
        "\u202eabc",
        "=cmd|'/C calc'!A0",
        "a\nb",
        "a\0b",
        "\ud800",
        "../../x",
        "/dev/zero",
    ),
    *([], {}, [[]], [None], {"": None}, {"a": {"a": 1}}, [1] * 1000, DEEP, "subprocess.Popen"),
)
"""Values that take the place of others: types, ends of ranges, texts that programs act on."""


TENSORS = (
    *(torch.zeros(0), torch.zeros(()), torch.zeros(1, 1), torch.ones(2, 3), torch.zeros(3, 0, 2)),
    *(torch.ones(2).to(kind) for kind in (torch.bool, torch.int64, torch.float8_e4m3fn)),
    *(torch.ones(2).to(kind) for kind in (torch.float64, torch.bfloat16, torch.complex64)),
    *(torch.full((4, 4), 1e38), torch.full((4,), float("inf"))),
)
"""Tensors of other shapes, types and ranges."""


def paths_in(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value of nested lists and mappings."""
    yield path
    if isinstance(content, dict):
        entries = list(content.items())
    else:
        entries = list(enumerate(content)) if isinstance(content, list) else []
    for key, value in entries:
        yield from paths_in(value, (*path, key))


def replaced(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Return a copy of nested lists and mappings with another value at a path."""
    if not path:
        return value
    copy = dict(content) if isinstance(content, dict) else list(content)
    copy[path[0]] = replaced(copy[path[0]], path[1:], value)
    return copy


def altered(rng: random.Random, content: Any, more: Sequence[Any] = ()) -> Any:
    """Return nested values with one of them replaced, removed or exchanged.

    Args:
        rng: Decides what.
        content: Nested lists and mappings.
        more: Values that are used as often as all `VALUES` together.
    """
    paths = list(paths_in(content))
    path = rng.choice(paths)
    parent = content
    for key in path[:-1]:
        parent = parent[key]
    kind = rng.random()
    if path and kind < 0.15:
        rest = dict(parent) if isinstance(parent, dict) else list(parent)
        del rest[path[-1]]
        return replaced(content, path[:-1], rest)
    if kind < 0.3:
        other = content
        for key in rng.choice(paths):
            other = other[key]
        return replaced(content, path, other)
    return replaced(content, path, rng.choice(more if more and kind < 0.65 else VALUES))
