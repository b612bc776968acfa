"""Small runs that tests of several files look at, made once; no test may change their folders."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from filelock import FileLock
from run_digests import run_digests
from small_runs import SMALL, FitWords, Recipe, read_csv, umask

from dmole.cli.main import main

MadeOnce = Callable[[str, Callable[[Path], Path]], Path]
"""Gives what a function makes in a folder of some name, and makes it in the first worker alone."""


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    """Return a function that shares a folder among the workers of a test session."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # that of all workers

    def made(name: str, make: Callable[[Path], Path]) -> Path:
        folder, done = root / f"shared_{name}", root / f"shared_{name}.txt"
        with FileLock(root / f"shared_{name}.lock"):
            if not done.exists():
                folder.mkdir()  # fails where another worker failed
                done.write_text(str(make(folder)), encoding="utf-8")
        return Path(done.read_text(encoding="utf-8"))

    return made


@pytest.fixture(scope="session")
def plain_run(made_once: MadeOnce) -> Path:
    """Folder of an uninterrupted small run with seed 0."""

    def make(folder: Path) -> Path:
        torch.manual_seed(0)
        return Recipe().build(folder).fit()

    return made_once("plain", make)


@pytest.fixture(scope="session")
def fit_words(tmp_path_factory: pytest.TempPathFactory) -> FitWords:
    """Return the command line of the shrunken quickstart; the verb and more words may be given."""
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL), encoding="utf-8")

    def words(root: Path, *more: str, verb: str = "fit") -> list[str]:
        configs = ["--config", "quickstart.yaml", "--config", str(path)]
        return [verb, *configs, "--trainer.default_root_dir", str(root), *more]

    return words


@pytest.fixture(scope="session")
def quick_run(made_once: MadeOnce, fit_words: FitWords) -> Path:
    """Run folder that the shrunken quickstart leaves when started as a user would.

    Made with a umask of 027, which the tests of permissions look for.
    """

    def make(folder: Path) -> Path:
        with umask(0o027):
            assert main(fit_words(folder / "runs")) == 0
        return folder / "runs" / "small" / "version_0"

    return made_once("quick", make)


@pytest.fixture(scope="session")
def evaluated(made_once: MadeOnce, quick_run: Path) -> Path:
    """Folder in which the run of ``quick_run`` was evaluated again, with the same umask."""

    def make(folder: Path) -> Path:
        before, output = run_digests(quick_run), folder / "again"
        with umask(0o027):
            assert main(["evaluate", str(quick_run), "--output", str(output)]) == 0
        assert run_digests(quick_run) == before
        assert [path.name for path in quick_run.parent.iterdir()] == ["version_0"]
        return output

    return made_once("evaluated", make)


@pytest.fixture(scope="session")
def rows() -> Callable[[Path], list[dict[str, str]]]:
    return read_csv
