from __future__ import annotations

import doctest
import importlib

import pytest

MODULES = [
    *("adversarial", "anchors", "distillation", "element_counts", "importance"),
    *("key_elements", "mixture", "orthogonality"),
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_the_docstrings_hold(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"dmole.regularizers.{name}"))
    assert result.attempted
    assert result.failed == 0
