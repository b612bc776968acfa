from __future__ import annotations

import doctest
import importlib

import pytest

MODULES = [
    "boxes",
    "captions",
    "continual",
    "matching",
    "matrix",
    "registry",
    "rules.choice",
    "rules.coin",
    "rules.grounding",
    "rules.mllm_dcl",
    "rules.rule",
    "rules.text_distance",
    "treebank",
    "vqa",
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_the_docstrings_hold(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"dmole.metrics.{name}"))
    assert result.attempted
    assert result.failed == 0
