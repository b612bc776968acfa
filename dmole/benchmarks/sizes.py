"""Compares the sizes of the splits of a task with the published sizes."""

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
        benchmark: ``<benchmark>/<task>`` to select one; by default all benchmarks that have a
            task of this name.
        by_image: Whether each image is one item, so that published numbers of images apply.

    Returns:
        Sizes by ``<benchmark>/<task>``; empty if none was published.

    Raises:
        ValueError: If ``benchmark`` is given and no benchmark has this task.

    Example:
        >>> published_sizes("pmc_vqa", "cmit/PMC-VQA")
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
        raise ValueError(
            f"task {task!r}: unknown benchmark {benchmark!r}; it must be one of {names}"
        )
    return {name: splits for name, splits in sizes.items() if splits}


def size_mismatch(
    counted: Mapping[Split, int], published: Mapping[str, Mapping[Split, int]]
) -> dict[Split, str]:
    """Return the splits whose size differs from all published sizes.

    If several benchmarks share the name of a task, the data must match one of them in all splits.

    Args:
        counted: Number of items of each split.
        published: Sizes by benchmark and task.

    Returns:
        The expected sizes of each split that does not match; empty if all match.
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
