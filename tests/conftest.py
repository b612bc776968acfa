"""What all tests share: one thread, a fixed seed, a private cache, the reference figures."""

from __future__ import annotations

import gc
import os
import signal

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported, and by child processes

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import settings
from lightning.fabric.utilities.rank_zero import rank_zero_only

if TYPE_CHECKING:
    from transformers import ProcessorMixin

    from dmole.data.sample import ArrayImage

torch.set_num_threads(1)
settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

RUNS = ("accelerator", "contracts", "e2e")
"""Folders of tests that make whole runs."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the files that take longest, so that both workers end together."""
    longest = {*RUNS, Path(__file__).parent.name}  # beside this file the README is run
    items.sort(key=lambda item: item.path.parent.name not in longest)


def pytest_collection_finish() -> None:
    """Spare the garbage collector half a million objects of imported modules and of tests."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep tests out of the user's cache, and each worker's tests in a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DMOLE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="module")
def _without_waiting_for_the_disk(request: pytest.FixtureRequest) -> Iterator[None]:
    """Runs wait for the disk some hundred times, and no test of whole runs pulls the plug."""
    with pytest.MonkeyPatch.context() as patch:
        if request.path.parent.name in RUNS:
            patch.setattr("os.fsync", lambda handle: None)
        yield


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _leaves_the_process_as_it_was() -> Iterator[None]:
    """Fail a test that changes what later tests of the same process depend on."""
    before = _process_state()
    yield
    after = _process_state()
    rank_zero_only.rank = before["rank"]
    assert after == before


def _process_state() -> dict[str, Any]:
    return {
        "rank": rank_zero_only.rank,  # a Trainer sets it from the variables of a launcher
        "directory": Path.cwd(),
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "process group": torch.distributed.is_initialized(),
        "signals": {name: signal.getsignal(name) for name in SIGNALS},
    }


@pytest.fixture(scope="session")
def fixtures_dir() -> Path:
    folder = Path(__file__).resolve().parents[2] / "shared" / "fixtures"
    if not folder.is_dir():
        pytest.skip("the parity fixtures are not beside this checkout (../shared/fixtures)")
    return folder


PROCESSORS = ["llava_plain", "llava", "llava_next", "idefics3"]


@pytest.fixture(scope="session")
def processors() -> dict[str, ProcessorMixin]:
    """Return one processor of each kind that the data tests go through."""
    from families import make_processor  # imports all of transformers

    return {family: make_processor(family) for family in PROCESSORS}


@pytest.fixture(params=PROCESSORS)
def processor(
    request: pytest.FixtureRequest, processors: dict[str, ProcessorMixin]
) -> ProcessorMixin:
    kind: str = request.param
    return processors[kind]


@pytest.fixture(scope="session")
def picture() -> ArrayImage:
    from families import make_image

    return make_image(0)
