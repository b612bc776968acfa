"""Prepares the folder of a benchmark: empty, with a guide, or filled with a miniature."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

from dmole.benchmarks.layouts.guides import GUIDES, readme


def init_benchmark(
    name: str, root: Path, *, miniature: bool = False, force: bool = False
) -> list[str]:
    """Make the folders that a benchmark's config reads from, and a README.md.

    Args:
        name: One of `GUIDES`.
        root: The folder of all data; must be absent or empty.
        miniature: Whether to write a miniature of the benchmark, too: tiny pictures, 8 train and
            4 test items a task, all side files, and those of `retention.yaml`.
        force: Whether the folder may hold something: folders that lack are made and README.md is
            written anew, nothing else is touched. Not together with ``miniature``.

    Returns:
        The folders made, relative to the root.

    Raises:
        ValueError: If the benchmark is unknown, or a miniature is to be put into a folder that
            may hold something.
        FileExistsError: If the root is a file, or holds something and ``force`` is off.
    """
    if name not in GUIDES:
        raise ValueError(f"no benchmark {name!r}, there are {', '.join(sorted(GUIDES))}")
    if miniature and force:
        raise ValueError("a miniature wants a folder of its own: --miniature without --force")
    if root.exists() and (not root.is_dir() or (any(root.iterdir()) and not force)):
        hint = "" if miniature else "; --force adds what is missing"
        raise FileExistsError(f"{root} exists and is not an empty folder{hint}")
    if root.exists():
        return _fill(name, root, miniature)
    root.parent.mkdir(parents=True, exist_ok=True)
    draft = root.parent / f".{root.name}.{uuid.uuid4().hex}"
    try:
        made = _fill(name, draft, miniature)
        draft.rename(root)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return made


def _fill(name: str, root: Path, miniature: bool) -> list[str]:
    made = [folder for folder in GUIDES[name].folders if not (root / folder).is_dir()]
    for folder in made:
        (root / folder).mkdir(parents=True)
    if miniature:
        from dmole.benchmarks.layouts.miniature import MINIATURES, Writer
        from dmole.benchmarks.layouts.miniature_cmit import write_retention

        writer = Writer(root)
        MINIATURES[name](writer)
        write_retention(writer)
    (root / "README.md").write_text(readme(name), encoding="utf-8")
    return made
