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
    "dmole.allocation.depth": "dmole.allocation.budget",
    "dmole.arguments": "dmole.cli.arguments",
    "dmole.checkpoint": "dmole.run.checkpoint",
    "dmole.clock": "dmole.run.clock",
    "dmole.config_files": "dmole.cli.config_files",
    "dmole.data.blur": "dmole.streams.blur",
    "dmole.data.datamodule": "dmole.datamodule",
    "dmole.data.doctor": "dmole.doctor",
    "dmole.data.draws": "dmole.streams.draws",
    "dmole.data.examples": "dmole.demo.examples",
    "dmole.data.layouts": "dmole.data.source",
    "dmole.data.replay": "dmole.streams.replay",
    "dmole.data.store": "dmole.store",
    "dmole.data.stream": "dmole.streams.stream",
    "dmole.data.synthetic": "dmole.demo.world",
    "dmole.data_check": "dmole.cli.check",
    "dmole.files": "dmole.storage.files",
    "dmole.lightning_cli": "dmole.cli.lightning",
    "dmole.metrics.registry": "dmole.benchmarks.registry",
    "dmole.metrics.retention_metrics": "dmole.benchmarks.retention.metrics",
    "dmole.metrics.rule_metrics": "dmole.benchmarks.metrics",
    "dmole.metrics.rules": "dmole.benchmarks.registry",
    "dmole.models.tiny": "dmole.demo.tiny",
    "dmole.optimization": "dmole.curriculum.optimization",
    "dmole.reliability": "dmole.run",
    "dmole.routing.balance": "dmole.regularizers.mixture",
    "dmole.routing.placement": "dmole.routing.mixture_routers",
    "dmole.routing.task_keys": "dmole.routing.key_router",
    "dmole.tensor_files": "dmole.storage.tensors",
}
"""Old name of each moved module, with its new name."""

NAMES = {
    "dmole.benchmarks.metrics.MultichoiceInBatches": (
        "dmole.benchmarks.cmit.rules.MultichoiceInBatches"
    ),
    "dmole.benchmarks.metrics.UCITCaption": "dmole.benchmarks.ucit.captions.UCITCaption",
    "dmole.data.ContinualDataModule": "dmole.datamodule.ContinualDataModule",
    "dmole.data.source.read_task": "dmole.data.source.open_source",
    "dmole.metrics.MultichoiceInBatches": "dmole.benchmarks.cmit.rules.MultichoiceInBatches",
    "dmole.metrics.ProfiledMetric": "dmole.benchmarks.metrics.ProfiledMetric",
    "dmole.metrics.RuleMetric": "dmole.benchmarks.metrics.RuleMetric",
    "dmole.metrics.UCITCaption": "dmole.benchmarks.ucit.captions.UCITCaption",
    "dmole.metrics.build_metric": "dmole.benchmarks.registry.build_metric",
    "dmole.metrics.metric_of_task": "dmole.benchmarks.registry.metric_of_task",
    "dmole.models.backbone.PretrainedBackbone": "dmole.models.pretrained.PretrainedBackbone",
    "dmole.routing.load_balance": "dmole.regularizers.mixture.load_balance",
    "dmole.routing.mixture_routers.KeyRouter": "dmole.routing.key_router.KeyRouter",
    "dmole.routing.soft_load_balance": "dmole.regularizers.mixture.soft_load_balance",
}
"""Old path of each class or function that has left a module, with its new path.

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
        current = current_module(name)
        return ModuleSpec(name, _Alias(current)) if current != name else None


def current_module(name: str) -> str:
    """Return the current dotted path of a module; the same path if the module has not moved.

    Example:
        >>> current_module("dmole.reliability.signals")
        'dmole.run.signals'
    """
    parts = name.split(".")
    for count in range(len(parts), 1, -1):
        package = ".".join(parts[:count])
        if package in MOVED:
            return ".".join([MOVED[package], *parts[count:]])
    return name


def moved_name(module: str, name: str) -> Any:
    """Return an object that has left a module, for the module's ``__getattr__``.

    Raises:
        AttributeError: If no object of this name has left the module.
    """
    old = f"{module}.{name}"
    if old not in NAMES:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    log.warning("%s is now %s; the old path ends with the next release", old, NAMES[old])
    home, _, current = NAMES[old].rpartition(".")
    return getattr(import_module(home), current)


def current_path(path: str) -> str:
    """Return the current dotted path of a class; the same path if the class has not moved.

    Example:
        >>> current_path("dmole.data.stream.JointStream")
        'dmole.streams.stream.JointStream'
    """
    module, _, name = path.rpartition(".")
    return NAMES.get(path) or f"{current_module(module)}.{name}"


def install() -> None:
    """Register the finder of old paths; further calls in a process have no effect."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())  # before the finder that searches packages' folders
