"""How many items the splits of the benchmarks have, as published; for checking what one has."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from dmole.data.formats import Split


@dataclass(frozen=True)
class Size:
    """A published number of items.

    Args:
        items: The number.
        source: Where it is stated.
        of: What is counted, where it is not the items of the file.
    """

    items: int
    source: str
    of: str = "items"


_META = "gcd19/D-MoLE shell/dmole/*.json, length"
_UCIT = "Ghy0501/HiDe-LLaVA README.md, file names"
_IMAGES = "images of the file"

SIZES: dict[str, dict[str, dict[Split, Size]]] = {
    "coin": {
        # CoIN states no counts in its repository, and users count otherwise (HiDe-LLaVA issue 1):
        # these are the official splits that its test files are made of
        "ScienceQA": {"test": Size(4241, "lupantech/ScienceQA, split test")},
        "TextVQA": {"test": Size(5000, "textvqa.org, version 0.5.1, split val")},
        "GQA": {"test": Size(12578, "GQA, testdev balanced")},
        "VizWiz": {"test": Size(4319, "vizwiz.org, split val")},
        **{name: {} for name in ("ImageNet", "Grounding", "VQAv2", "OCR-VQA")},
    },
    "ucit": {
        "ImageNet-R": {"test": Size(3000, _UCIT)},
        "ArxivQA": {"train": Size(40000, _UCIT), "test": Size(3000, _UCIT)},
        "VizWiz-Cap": {"test": Size(3000, _UCIT)},
        "IconQA": {"test": Size(3000, _UCIT)},
        "CLEVR-Math": {"train": Size(40000, _UCIT), "test": Size(3000, _UCIT)},
        "Flickr30k": {"train": Size(40000, _UCIT), "test": Size(3000, _UCIT)},
    },
    # neither repository states counts
    "mllm_dcl": {name: {} for name in ("RS", "Med", "AD", "Sci", "Fin")},
    "cmit": {
        "VizWiz-Cap": {
            "train": Size(117155, _META),
            "test": Size(7750, "vizwiz.org, captions, split val", _IMAGES),
        },
        "SK-VG": {"train": Size(23404, _META)},
        "TextCaps": {
            "train": Size(109765, _META),
            "test": Size(3166, "textvqa.org, TextCaps, split val", _IMAGES),
        },
        "IconQA": {"train": Size(18946, f"{_META}; repeated 5 times in an epoch")},
        "OCR-VQA": {"train": Size(166043, _META)},
        "Flickr30k": {
            "train": Size(145000, _META),
            "test": Size(1000, "Karpathy's split of Flickr30k, test", _IMAGES),
        },
        "VizWiz": {
            "train": Size(20523, _META),
            "test": Size(4319, "vizwiz.org, split val"),
        },
        "KVQA": {"train": Size(146408, _META)},
        "PMC-VQA": {
            "train": Size(176948, _META),
            "test": Size(2000, "xmcmic/PMC-VQA, test_clean"),
        },
    },
}
"""Sizes by benchmark (the name of its config), task (as its config names it) and split.

Only what a repository, a file or the data set's own authors state is here. A number may be that of
a version: a difference is a question, not an error.
"""


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
        Sizes by ``<benchmark>/<task>``; empty where none is known.

    Raises:
        ValueError: If ``benchmark`` is given and not known.

    Example:
        >>> published_sizes("pmc_vqa")
        {'cmit/PMC-VQA': {'train': 176948, 'test': 2000}}
    """
    wanted = _plain(benchmark or task)
    found = {
        f"{group}/{name}": {
            split: size.items for split, size in sizes.items() if by_image or size.of == "items"
        }
        for group, tasks in SIZES.items()
        for name, sizes in tasks.items()
        if wanted == (_plain(name) if benchmark is None else _plain(f"{group}/{name}"))
    }
    if benchmark is not None and not found:
        known = ", ".join(f"{group}/{name}" for group, tasks in SIZES.items() for name in tasks)
        raise ValueError(f"task {task!r}: unknown benchmark {benchmark!r}; known are {known}")
    return {name: sizes for name, sizes in found.items() if sizes}


def size_mismatch(
    found: Mapping[Split, int], published: Mapping[str, Mapping[Split, int]]
) -> dict[Split, str]:
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
