"""One tiny model of every family, saved and loaded once, and one with two experts on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import transformers
from families import FAMILIES, randomize
from families.modules import add_expert, make_module
from families.saved import Folders, save_family
from packaging.version import Version

from dmole.module import ContinualModule

# before 5.23 of transformers mllama refuses a batch of samples with and without an image
MLLAMA = (1, 0, 1) if Version(transformers.__version__) >= Version("5.23") else (1, 2, 1)
MIXES = {"paligemma": (1, 2, 1), "mllama": MLLAMA}
"""Images of three samples of a batch, where a family cannot take one, none and two."""


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Return a function that gives the folder of the model of a family, made on first use."""
    root, made = tmp_path_factory.mktemp("families"), {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = save_family(family, root / family)
        return made[family]

    return folder


@pytest.fixture(scope="session", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def mix(family: str) -> tuple[int, int, int]:
    return MIXES.get(family, (1, 0, 2))


@pytest.fixture(scope="session")
def bare(family: str, folders: Folders) -> ContinualModule:
    return make_module(folders(family))


@pytest.fixture
def fresh(bare: ContinualModule) -> Iterator[ContinualModule]:
    """A module without experts; those that a test adds are gone after it."""
    yield bare
    for name in bare.library.names:
        bare.library.remove(name)
    bare.library.train_only(None)


@pytest.fixture(scope="session")
def taught(family: str, folders: Folders) -> ContinualModule:
    """A module with the experts ``a`` and ``b`` on every linear; tests leave it as it is."""
    module = make_module(folders(family))
    for name in "ab":
        add_expert(module, name)
        randomize(module.library, name)
    module.library.train_only(None)
    return module
