"""Opens one file as the training or test samples of a task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dmole.data.formats import Split
from dmole.data.sequences import Samples
from dmole.data.source import open_source
from dmole.data.task import Task


def open_samples(
    source: str, split: Split, image_root: Path | None = None, prompt_suffix: str = "", **keys: Any
) -> Samples:
    """Return the samples of an address."""
    root = None if image_root is None else str(image_root)
    task = Task("t", image_root=root, prompt_suffix=prompt_suffix, **{split: source}, **keys)
    return open_source(task, split, Path("/nowhere"))


def read_samples(
    source: str, split: Split, image_root: Path | None = None, prompt_suffix: str = ""
) -> list[Any]:
    """Return the samples of an address, always in memory."""
    return list(open_samples(source, split, image_root, prompt_suffix))
