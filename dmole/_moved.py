"""Old dotted paths of moved modules. They work for one release and log one warning line each."""

from __future__ import annotations

import logging
import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

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
    "dmole.metrics.retention_metrics": "dmole.benchmarks.retention.metrics",
    "dmole.metrics.rule_metrics": "dmole.benchmarks.metrics",
    "dmole.models.tiny": "dmole.demo.tiny",
    "dmole.optimization": "dmole.curriculum.optimization",
    "dmole.reliability": "dmole.run",
    "dmole.strategies": "dmole.run.strategies",
}
"""Old name of each moved module, with its new name."""

NAMES = {
    "dmole.benchmarks.metrics.MultichoiceInBatches": "dmole.benchmarks.cmit.rules",
    "dmole.benchmarks.metrics.UCITCaption": "dmole.benchmarks.ucit.captions",
    "dmole.metrics.MultichoiceInBatches": "dmole.benchmarks.cmit.rules",
    "dmole.metrics.ProfiledMetric": "dmole.benchmarks.metrics",
    "dmole.metrics.RuleMetric": "dmole.benchmarks.metrics",
    "dmole.metrics.UCITCaption": "dmole.benchmarks.ucit.captions",
    "dmole.metrics.build_metric": "dmole.benchmarks.registry",
    "dmole.metrics.metric_of_task": "dmole.benchmarks.registry",
}
"""Old path of each class or function that has left a module, with its new module.

`dmole.benchmarks.metrics` is listed because `dmole.metrics.rule_metrics` now resolves to it.
"""


class _Alias(Loader):
    """Loads a module from its new path under its old name."""

    def __init__(self, new: str) -> None:
        self._new = new

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Import and return the module from its new path."""
        log.warning("%s is now %s; the old path ends with the next release", spec.name, self._new)
        module = import_module(self._new)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Restore the module's own specification; the import has executed the module already."""
        module.__spec__ = self._spec


class _Finder(MetaPathFinder):
    """Finds modules by their old names."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Return the specification of an alias; None for a module that has not moved."""
        return ModuleSpec(name, _Alias(MOVED[name])) if name in MOVED else None


def moved_name(module: str, name: str) -> Any:
    """Return an object that has left a module, for the module's ``__getattr__``.

    Raises:
        AttributeError: If no object of this name has left the module.
    """
    old = f"{module}.{name}"
    if old not in NAMES:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    log.warning("%s is now %s.%s; the old path ends with the next release", old, NAMES[old], name)
    return getattr(import_module(NAMES[old]), name)


def current_path(path: str) -> str:
    """Return the current dotted path of a class; the same path if the class has not moved.

    Example:
        >>> current_path("dmole.data.stream.JointStream")
        'dmole.streams.stream.JointStream'
    """
    module, _, name = path.rpartition(".")
    return f"{NAMES.get(path) or MOVED.get(module, module)}.{name}"


def install() -> None:
    """Register the finder of old paths; further calls in a process have no effect."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
