"""A loaded run needs no Lightning: no module that `dmole.load` imports at its top imports it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path


def is_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # of a class of a module
        return False


def imported(module: str) -> Iterator[str]:
    """Yield what a module imports at its top level, outside of ``if TYPE_CHECKING``."""
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    for node in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            if node.module.partition(".")[0] == "dmole":
                names = (f"{node.module}.{alias.name}" for alias in node.names)
                yield from (name for name in names if is_module(name))


def all_imported(start: str) -> set[str]:
    """Return all modules that importing a module of dmole imports, packages around them too."""
    seen: set[str] = set()
    pending = [start]
    while pending:
        name = pending.pop()
        while name and name not in seen:
            seen.add(name)
            if name.partition(".")[0] == "dmole":
                pending += imported(name)
            name = name.rpartition(".")[0]
    return seen


def test_nothing_that_a_loaded_run_imports_imports_lightning() -> None:
    loading = all_imported("dmole.inference.loading")
    assert {"dmole.inference.model", "dmole.routing.bank", "torch"} <= loading
    assert "lightning" not in loading
    assert "lightning" in all_imported("dmole.trainer")
