"""A run folder has the permissions that the user's umask gives, in every file and folder."""

from __future__ import annotations

import os
import stat

import pytest

from dmole.cli.main import main


@pytest.mark.parametrize("mask", [0o027, pytest.param(0o002, marks=pytest.mark.slow)], ids=oct)
def test_all_of_a_run_follows_the_umask(fit_words, tmp_path, mask):
    root = tmp_path / "runs"
    before = os.umask(mask)
    try:
        assert main(fit_words(root)) == 0
        assert main(["evaluate", str(root / "small" / "version_0")]) == 0
    finally:
        os.umask(before)
    found = {path: stat.S_IMODE(path.stat().st_mode) for path in [root, *root.rglob("*")]}
    wrong = {
        str(path.relative_to(tmp_path)): oct(mode)
        for path, mode in found.items()
        if mode != (0o777 if path.is_dir() else 0o666) & ~mask
    }
    assert wrong == {}
    endings = {path.suffix for path in found}
    assert {".ckpt", ".safetensors", ".png", ".yaml", ".json", ".jsonl", ".csv"} <= endings
    assert any("tfevents" in path.name for path in found)
