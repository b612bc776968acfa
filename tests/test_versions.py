"""The versions that the project states are those that its scripts install."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
TESTED = ("test", "examples", "report", "serve", "smolvlm")
"""Extras whose lower bounds are tested."""


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    tomllib = pytest.importorskip("tomllib")  # since Python 3.11
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found: dict[str, Any] = tomllib.loads(text)["project"]
    return found


def pins(file: str) -> dict[str, Version]:
    text = (ROOT / file).read_text(encoding="utf-8")
    requirements = [Requirement(line) for line in text.splitlines() if not line.startswith("#")]
    return {_name(one): Version(next(iter(one.specifier)).version) for one in requirements}


def bounds(project: dict[str, Any], operator: str) -> dict[str, Version]:
    """Return the bounds of a kind, such as ``>=``, by package."""
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *(line for extra in TESTED for line in extras[extra])]
    requirements = [Requirement(line) for line in lines]
    return {
        _name(one): Version(part.version)
        for one in requirements
        for part in one.specifier
        if part.operator == operator
    }


def _name(requirement: Requirement) -> str:
    return re.sub("[-_.]+", "-", requirement.name).lower()


def test_the_oldest_set_pins_every_lower_bound(project: dict[str, Any]) -> None:
    assert pins("constraints-oldest.txt") == bounds(project, ">=")


def test_the_developers_versions_are_within_the_bounds(project: dict[str, Any]) -> None:
    ours = pins("constraints.txt")
    for name, lowest in bounds(project, ">=").items():
        assert ours[name] >= lowest, name


def test_only_lightning_has_an_upper_bound(project: dict[str, Any]) -> None:
    """Its private names are used; any other bound would keep users from newer releases."""
    assert bounds(project, "<") == {"lightning": Version("2.7")}


def test_each_python_that_is_stated_is_supported(project: dict[str, Any]) -> None:
    prefix = "Programming Language :: Python :: "
    stated = [line.removeprefix(prefix) for line in project["classifiers"] if prefix in line]
    assert stated == ["3.10", "3.11", "3.12", "3.13"]
    assert project["requires-python"] == f">={stated[0]}"
    mypy_and_ruff = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'python_version = "{stated[0]}"' in mypy_and_ruff
    assert f'target-version = "py{stated[0].replace(".", "")}"' in mypy_and_ruff
