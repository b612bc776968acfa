"""Sizes of published benchmark splits, to notice a file that is not the one it is named after."""

from __future__ import annotations

import re
from collections.abc import Mapping

from dmole.data.formats import Split

Sizes = Mapping[Split, int]

PUBLISHED: dict[str, dict[str, Sizes]] = {
    # train sizes of the nine tasks: meta files in `shell/dmole` of the released code,
    # github.com/gcd19/D-MoLE at 0725cd3
    "D-MoLE": {
        "VizWiz-Cap": {"train": 117155},
        "SK-VG": {"train": 23404},
        "TextCaps": {"train": 109765},
        "IconQA": {"train": 18946},
        "OCR-VQA": {"train": 166043},
        "Flickr30k": {"train": 145000},
        "VizWiz": {"train": 20523},
        "KVQA": {"train": 146408},
        "PMC-VQA": {"train": 176948},
    },
    # 3000 test items a task: HiDe-LLaVA, README of github.com/Ghy0501/HiDe-LLaVA at 4dd0793
    "UCIT": {
        name: {"test": 3000}
        for name in ("ImageNet-R", "ArxivQA", "VizWiz-Cap", "IconQA", "CLEVR-Math", "Flickr30k")
    },
}


def published_sizes(task: str, benchmark: str | None = None) -> dict[str, Sizes]:
    """Return the published split sizes of a task, by benchmark.

    Args:
        task: Name of the task. Case, ``-`` and ``_`` do not matter.
        benchmark: ``<benchmark>/<task>`` to name the one that is meant; by default all that have
            a task of the name.

    Returns:
        Sizes by ``<benchmark>/<task>``; empty where none is known.

    Raises:
        ValueError: If ``benchmark`` is given and not known.

    Example:
        >>> published_sizes("vizwiz_cap")
        {'D-MoLE/VizWiz-Cap': {'train': 117155}, 'UCIT/VizWiz-Cap': {'test': 3000}}
    """
    wanted = _plain(benchmark or task)
    found = {
        f"{group}/{name}": sizes
        for group, tasks in PUBLISHED.items()
        for name, sizes in tasks.items()
        if wanted == (_plain(name) if benchmark is None else _plain(f"{group}/{name}"))
    }
    if benchmark is not None and not found:
        known = ", ".join(f"{group}/{name}" for group, tasks in PUBLISHED.items() for name in tasks)
        raise ValueError(f"task {task!r}: unknown benchmark {benchmark!r}; known are {known}")
    return found


def size_mismatch(found: Mapping[Split, int], published: Mapping[str, Sizes]) -> dict[Split, str]:
    """Say which splits have none of the published sizes.

    A name that several benchmarks share fits if all sizes known of one of them do.

    Args:
        found: Items of each split.
        published: Sizes by benchmark and task.

    Returns:
        For each split that does not fit the sizes expected; empty where the data fit.
    """
    wrong = {
        name: [split for split, size in sizes.items() if split in found and found[split] != size]
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
