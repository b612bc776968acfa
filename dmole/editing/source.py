"""Opens a finished run for an edit: its experts, stages, router and settings, verified."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmole.experts.export import MIXTURE, read_expert
from dmole.experts.soft_prompts import PromptShape
from dmole.routing import AllExpertsRouter, Router, SharedRouter
from dmole.routing.storage import INDEX
from dmole.run.learned import read_names, read_stages
from dmole.run.loading import build_router
from dmole.run.model_file import read_run_settings
from dmole.run.schema import RunSettings
from dmole.storage.digests import FILE, Digests, file_digest, read_digests, verify_files
from dmole.storage.disabled import read_disabled
from dmole.storage.reading import read_json, refusing
from dmole.storage.versions import check_newest, updates_among
from dmole.streams.stream import Stage

READ = ("experts/", "router/", "model.json", "metrics.json")
"""Beginnings of the names of the files that every edit reads."""


@dataclass(frozen=True)
class OpenRun:
    """A finished run.

    Args:
        run: Its folder.
        digests: Digests of its files, and its stages.
        names: Its experts, in order.
        stages: Its trained stages.
        settings: What its answers depend on.
        router: Its router, with what it has learned.
        metrics: Content of ``metrics.json``.
    """

    run: Path
    digests: Digests
    names: list[str]
    stages: list[Stage]
    settings: RunSettings
    router: Router
    metrics: dict[str, Any]

    @property
    def parent(self) -> dict[str, Any]:
        """What a run made from this one says of it: name, digest and number of stages."""
        folder = self.run.resolve()
        named = f"{folder.parent.name}/{folder.name}" if folder.parent.name else folder.name
        return {"run": named, "digest": file_digest(self.run / FILE), "stage": len(self.stages)}

    def check_has(self, name: str) -> None:
        """Raise unless the run has an expert that only some of its tasks use.

        Raises:
            ValueError: If it has none of this name, or all tasks share it.
        """
        if name not in self.names:
            raise ValueError(f"{self.run} has no expert {name!r}; it has {', '.join(self.names)}")
        if name in (self.router.common, *(stage.common for stage in self.stages)):
            raise ValueError(
                f"the expert {name!r} of {self.run} is shared by all tasks: it can be neither "
                "taken out nor renamed"
            )

    def check_newest(self, names: Sequence[str]) -> None:
        """Raise if one of some experts has a later version that is not among them.

        Raises:
            ValueError: If so; names both.
        """
        check_newest(self.run, names, self.router.updates)

    def check_separable(self) -> None:
        """Raise if the experts of the run answer only together.

        Raises:
            ValueError: If they were trained on top of one another.
        """
        if isinstance(self.router, AllExpertsRouter):
            raise ValueError(
                f"the experts of {self.run} were trained on top of one another (AllExpertsRouter): "
                "none of them can be taken out or added"
            )
        if isinstance(self.router, SharedRouter):
            raise ValueError(
                f"{self.run} uses one expert for all samples ({type(self.router).__name__}): its "
                "experts cannot be edited"
            )

    def check_enabled(self, names: Sequence[str]) -> None:
        """Raise unless experts are enabled, since an evaluation leaves out those that are not.

        Raises:
            ValueError: If one of them is disabled.
        """
        disabled = read_disabled(self.run)
        for name in names:
            if name in disabled:
                raise ValueError(
                    f"the expert {name!r} of {self.run} is disabled, and the new run would be "
                    "evaluated without it: enable it first"
                )

    def is_mixture(self, name: str) -> bool:
        """Return whether an expert has routers or branches within its linears."""
        folder = self.run / "experts" / name
        if not (folder / MIXTURE).exists():
            return False
        shapes, _ = read_expert(folder, name)
        return not all(isinstance(shape, PromptShape) for shape in shapes.values())


def open_run(run: Path, trusted: Sequence[str] = ()) -> OpenRun:
    """Open a finished run.

    Args:
        run: Its folder, which anyone may have written.
        trusted: Modules outside dmole whose classes the run may name.

    Raises:
        ValueError: If it is no run folder, a file is missing, cannot be read or was changed since
            the run wrote it, or the run is of a version without ``digests.json``; names the file.
    """
    settings = read_run_settings(run, trusted)
    digests = read_digests(run)
    if digests is None:
        raise ValueError(f"{run} has no {FILE}: a run of an earlier version cannot be edited")
    names = read_names(run, digests)
    if not names:
        raise ValueError(f"{run} has no experts")
    verify_files(run, digests, lambda name: name.startswith(READ))
    router = build_router(settings, trusted)
    with refusing(run / "router" / INDEX, "router"):
        router.load(run / "router")
    router.updates = updates_among(names, router.updates)
    metrics = _read_metrics(run / "metrics.json")
    stages = read_stages(run) or []
    for stage in stages:
        for name in stage.experts:
            if name not in names:
                raise ValueError(f"{run / FILE} names the expert {name!r}, which {run} lacks")
    return OpenRun(run, digests, names, stages, settings, router, metrics)


def _read_metrics(path: Path) -> dict[str, Any]:
    """Return the content of ``metrics.json``, with the form of what edits read of it checked."""
    metrics = read_json(path, "metrics") if path.exists() else {}
    prints = _keys(path, "the file", metrics).get("fingerprints", {})
    data = _keys(path, "fingerprints", prints).get("data", {})
    for name, splits in _keys(path, "fingerprints.data", data).items():
        _keys(path, f"fingerprints.data.{name}", splits)
    for name, start in _keys(path, "experts", metrics.get("experts", {})).items():
        where = f"experts.{name}"
        if not isinstance(_keys(path, where, start).get("starts_from", 0), str | None):
            raise ValueError(f"{path}: {where}.starts_from must be the name of an expert or null")
    return dict(metrics)


def _keys(path: Path, where: str, value: Any) -> dict[str, Any]:
    """Return a part of a file that must hold keys and values."""
    if not isinstance(value, dict):
        kind = type(value).__name__
        raise ValueError(f"{path}: {where} must hold keys and values, got {kind}")
    return value
