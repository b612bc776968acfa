"""Processors of three families and a picture."""

from __future__ import annotations

from typing import Any

import pytest
from families import make_image, make_processor

from dmole.data.sample import ArrayImage

FAMILIES = ["llava_plain", "llava", "llava_next", "idefics3"]


@pytest.fixture(scope="session")
def processors() -> dict[str, Any]:
    return {family: make_processor(family) for family in FAMILIES}


@pytest.fixture(params=FAMILIES)
def processor(request: pytest.FixtureRequest, processors: dict[str, Any]) -> Any:
    return processors[request.param]


@pytest.fixture(scope="session")
def picture() -> ArrayImage:
    return make_image(0)
