"""Old dotted paths of moved modules. They work for one release and log one warning line each."""

from __future__ import annotations

import logging
import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

log = logging.getLogger("dmole")

MOVED = {
    "dmole.checkpoint": "dmole.run.checkpoint",
    "dmole.clock": "dmole.run.clock",
    "dmole.data.blur": "dmole.streams.blur",
    "dmole.data.datamodule": "dmole.datamodule",
    "dmole.data.draws": "dmole.streams.draws",
    "dmole.data.examples": "dmole.demo.examples",
    "dmole.data.replay": "dmole.streams.replay",
    "dmole.data.stream": "dmole.streams.stream",
    "dmole.data.synthetic": "dmole.demo.world",
    "dmole.metrics.registry": "dmole.benchmarks.registry",
    "dmole.metrics.rule_metrics": "dmole.benchmarks.metrics",
    "dmole.models.tiny": "dmole.demo.tiny",
    "dmole.optimization": "dmole.curriculum.optimization",
    "dmole.reliability": "dmole.run",
    "dmole.strategies": "dmole.run.strategies",
}
"""Old name of a module, and its name now."""


class _Alias(Loader):
    """Loads the module at its new place under the old name."""

    def __init__(self, new: str) -> None:
        self._new = new

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the module at its new place."""
        log.warning("%s is now %s; the old path ends with the next release", spec.name, self._new)
        module = import_module(self._new)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Give the module its own specification back; it has been executed before."""
        module.__spec__ = self._spec


class _Finder(MetaPathFinder):
    """Finds the modules that have moved."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Return the specification of an alias, None for all other modules."""
        return ModuleSpec(name, _Alias(MOVED[name])) if name in MOVED else None


def install() -> None:
    """Make old paths work, once in a process."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
