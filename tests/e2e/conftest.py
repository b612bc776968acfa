"""Small runs that tests of several files look at, made once; no test may change their folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from run_digests import run_digests
from small_runs import SMALL, FitWords, Recipe, read_csv, umask

from dmole.cli.main import main


@pytest.fixture(scope="session")
def plain_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an uninterrupted small run with seed 0."""
    torch.manual_seed(0)
    return Recipe().build(tmp_path_factory.mktemp("plain")).fit()


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
def quick_run(tmp_path_factory: pytest.TempPathFactory, fit_words: FitWords) -> Path:
    """Run folder that the shrunken quickstart leaves when started as a user would.

    Made with a umask of 027, which the tests of permissions look for.
    """
    root = tmp_path_factory.mktemp("quick")
    with umask(0o027):
        assert main(fit_words(root / "runs")) == 0
    return root / "runs" / "small" / "version_0"


@pytest.fixture(scope="session")
def evaluated(tmp_path_factory: pytest.TempPathFactory, quick_run: Path) -> Path:
    """Folder in which the run of ``quick_run`` was evaluated again, with the same umask."""
    before = run_digests(quick_run)
    output = tmp_path_factory.mktemp("evaluated") / "again"
    with umask(0o027):
        assert main(["evaluate", str(quick_run), "--output", str(output)]) == 0
    assert run_digests(quick_run) == before
    assert [path.name for path in quick_run.parent.iterdir()] == ["version_0"]
    return output


@pytest.fixture(scope="session")
def rows() -> Callable[[Path], list[dict[str, str]]]:
    return read_csv
