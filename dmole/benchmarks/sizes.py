"""Compares how many items the splits of a task have with the published numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping

from dmole.benchmarks.registry import BENCHMARKS, benchmark_tasks
from dmole.data.formats import Split


def published_sizes(
    task: str, benchmark: str | None = None, *, by_image: bool = False
) -> dict[str, dict[Split, int]]:
    """Return the published split sizes of a task, by benchmark.

    Args:
        task: Name of the task. Case, ``-`` and ``_`` do not matter.
        benchmark: ``<benchmark>/<task>`` to name the one that is meant; by default all that have
            a task of the name.
        by_image: Whether the items are read an image each, so that numbers of images hold too.

    Returns:
        Sizes by ``<benchmark>/<task>``; empty where none was published.

    Raises:
        ValueError: If ``benchmark`` is given and no benchmark has such a task.

    Example:
        >>> published_sizes("pmc_vqa")
        {'cmit/PMC-VQA': {'train': 176948, 'test': 2000}}
    """
    key = _plain(benchmark or task)
    sizes = {
        f"{group.name}/{name}": {
            split: size.items for split, size in splits.items() if by_image or size.of == "items"
        }
        for group in BENCHMARKS.values()
        for name, splits in group.sizes.items()
        if key == (_plain(name) if benchmark is None else _plain(f"{group.name}/{name}"))
    }
    if benchmark is not None and not sizes and key not in map(_plain, benchmark_tasks()):
        names = ", ".join(benchmark_tasks())
        raise ValueError(f"task {task!r}: unknown benchmark {benchmark!r}; known are {names}")
    return {name: splits for name, splits in sizes.items() if splits}


def size_mismatch(
    counted: Mapping[Split, int], published: Mapping[str, Mapping[Split, int]]
) -> dict[Split, str]:
    """Return the splits that have none of the published sizes.

    A name that several benchmarks share fits if all sizes published by one of them do.

    Args:
        counted: Items of each split.
        published: Sizes by benchmark and task.

    Returns:
        For each split that does not fit the sizes expected; empty where the data fit.
    """
    wrong = {
        name: [split for split, n in sizes.items() if split in counted and counted[split] != n]
        for name, sizes in published.items()
    }
    if any(not splits for splits in wrong.values()):
        return {}
    expected: dict[Split, list[str]] = {}
    for name, splits in wrong.items():
        for split in splits:
            expected.setdefault(split, []).append(f"{published[name][split]} ({name})")
    return {split: " or ".join(sizes) for split, sizes in expected.items()}


def _plain(name: str) -> str:
    return re.sub(r"[-_]", "", name).casefold()
