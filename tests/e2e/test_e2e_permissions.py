"""A run folder has the permissions that the user's umask gives, in every file and folder."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from small_runs import FitWords, umask

from dmole.cli.main import main


def wrong_modes(root: Path, mask: int) -> dict[str, str]:
    """Return what has other permissions than a umask gives, by its path."""
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in [root, *root.rglob("*")]}
    return {
        str(path.relative_to(root)): oct(mode)
        for path, mode in modes.items()
        if mode != (0o777 if path.is_dir() else 0o666) & ~mask
    }


def test_all_of_a_run_follows_the_umask(quick_run: Path, evaluated: Path) -> None:
    root = quick_run.parents[1]
    assert wrong_modes(root, 0o027) == {}
    assert wrong_modes(evaluated, 0o027) == {}
    endings = {path.suffix for path in root.rglob("*")}
    assert {".ckpt", ".safetensors", ".png", ".yaml", ".json", ".jsonl", ".csv"} <= endings
    assert any("tfevents" in path.name for path in root.rglob("*"))


@pytest.mark.slow
def test_all_of_a_run_follows_another_umask(fit_words: FitWords, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    with umask(0o002):
        assert main(fit_words(root)) == 0
        assert main(["evaluate", str(root / "small" / "version_0")]) == 0
    assert wrong_modes(root, 0o002) == {}
