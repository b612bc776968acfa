"""What every test shares: one thread, a fixed seed, the folder of reference figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("untimed", deadline=None)  # a busy machine is no fault
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def fixtures_dir() -> Path:
    folder = Path(__file__).resolve().parents[2] / "shared" / "fixtures"
    if not folder.is_dir():
        pytest.skip("the parity fixtures are not beside this checkout (../shared/fixtures)")
    return folder


PROCESSORS = ["llava_plain", "llava", "llava_next", "idefics3"]


@pytest.fixture(scope="session")
def processors() -> dict[str, Any]:
    """Return one processor of each kind that the data tests go through."""
    from families import make_processor

    return {family: make_processor(family) for family in PROCESSORS}


@pytest.fixture(params=PROCESSORS)
def processor(request: pytest.FixtureRequest, processors: dict[str, Any]) -> Any:
    return processors[request.param]


@pytest.fixture(scope="session")
def picture() -> Any:
    from families import make_image

    return make_image(0)
