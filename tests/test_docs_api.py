"""The API reference: every public name has an entry, and examples in docstrings are right."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "docs" / "_ext"))

import api_pages  # noqa: E402

ROOMS = api_pages.rooms()


def test_the_rooms_are_the_packages_and_modules_directly_below_dmole() -> None:
    found = {path.stem for path in (ROOT / "dmole").glob("[!_]*.py")}
    found |= {path.parent.name for path in (ROOT / "dmole").glob("[!_]*/__init__.py")}
    assert {room.removeprefix("dmole.") for room in ROOMS} == found


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_of_a_room_has_an_entry_and_a_docstring(room: str) -> None:
    module = import_module(room)
    published = [name for name in getattr(module, "__all__", ()) if not name.startswith("__")]
    names = api_pages.public_names(room)
    assert {name.rpartition(".")[2] for name in names} >= set(published)
    lines = api_pages.page(room).splitlines() if names else []
    for name in names:
        endings = (f":: {name}", f":: {name.rpartition('.')[2]}")  # whole, or below its module
        assert any(line.startswith(".. ") and line.endswith(endings) for line in lines), name
        (summary,) = [line for line in lines if line.startswith(f"* :py:obj:`~{name}`: ")]
        assert summary.split("`: ")[1].strip(), f"{name} has no docstring"


def test_every_name_of_the_package_itself_is_published_by_a_room() -> None:
    dmole = import_module("dmole")
    everywhere = {
        name.rpartition(".")[2] for room in ROOMS for name in api_pages.public_names(room)
    }
    assert set(dmole.__all__) - {"__version__"} <= everywhere
