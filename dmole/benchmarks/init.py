"""Creates the folder of a benchmark: with a guide, or filled with a miniature."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

from dmole.benchmarks.benchmark import Benchmark, Guide
from dmole.benchmarks.registry import BENCHMARKS
from dmole.benchmarks.shared.miniature import Miniature

_SIZES = "`dmole data check` examines all files and compares their sizes with the published ones."


def guided_benchmarks() -> list[str]:
    """Return the names of the benchmarks that have a guide, in alphabetical order."""
    return sorted(name for name, each in BENCHMARKS.items() if each.guide is not None)


def init_benchmark(
    name: str, root: Path, *, miniature: bool = False, force: bool = False
) -> list[str]:
    """Create the folders that a benchmark's config reads from, and a README.md.

    Args:
        name: One of `guided_benchmarks`.
        root: The folder of all data; must be absent or empty.
        miniature: Whether to write a miniature of the benchmark too: tiny images, 8 train and 4
            test items per task, all side files, and those of the benchmarks whose tasks are
            added after others.
        force: Whether the folder may contain files. Missing folders are created and README.md is
            written again; other files stay unchanged. Excludes ``miniature``.

    Returns:
        The created folders, relative to the root.

    Raises:
        ValueError: If the benchmark is unknown, or ``miniature`` and ``force`` are combined.
        FileExistsError: If the root is a file, or is not empty and ``force`` is off.
    """
    if name not in guided_benchmarks():
        raise ValueError(f"no benchmark {name!r}, there are {', '.join(guided_benchmarks())}")
    if miniature and force:
        raise ValueError("a miniature needs an empty folder: use --miniature without --force")
    if root.exists() and (not root.is_dir() or (any(root.iterdir()) and not force)):
        hint = "" if miniature else "; --force adds what is missing"
        raise FileExistsError(f"{root} exists and is not an empty folder{hint}")
    benchmark = BENCHMARKS[name]
    if root.exists():
        return _fill(benchmark, root, miniature)
    root.parent.mkdir(parents=True, exist_ok=True)
    draft = root.parent / f".{root.name}.{uuid.uuid4().hex}"
    try:
        made = _fill(benchmark, draft, miniature)
        draft.rename(root)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return made


def _fill(benchmark: Benchmark, root: Path, miniature: bool) -> list[str]:
    guide = benchmark.guide
    assert guide is not None  # benchmarks without a guide are refused
    made = [folder for folder in guide.folders if not (root / folder).is_dir()]
    for folder in made:
        (root / folder).mkdir(parents=True)
    if miniature:
        added = [each for each in BENCHMARKS.values() if each.guide is None]
        for each in (benchmark, *added):
            each.miniature(Miniature(root))
    (root / "README.md").write_text(_readme(guide, benchmark.config), encoding="utf-8")
    return made


def _readme(guide: Guide, config: str) -> str:
    """Return the guide in Markdown."""
    parts = "".join(f"- {line}\n" for line in guide.parts)
    notes = "".join(f"- {line}\n" for line in (*guide.notes, _SIZES))
    return (
        f"# {guide.title}\n\n## What to obtain\n{parts}\n## What to know\n{notes}\n## Then\n"
        f"    dmole data check --config {config} --data.data_root <this folder>\n"
        f"    dmole fit --config {config} --data.data_root <this folder>\n"
    )
