"""Loads the experts and the router of a run folder, and verifies that they are those of the run."""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from dmole.experts import load_expert
from dmole.routing.entries import learned_part, take_out
from dmole.routing.storage import INDEX
from dmole.run.loading import build_router
from dmole.run.model_file import MODEL_FILE, read_run_settings
from dmole.storage.digests import FILE, Digests, read_digests, verify_files
from dmole.storage.disabled import FILE as DISABLED
from dmole.storage.disabled import enabled, read_disabled
from dmole.storage.files import check_name, refusing
from dmole.storage.reading import read_json
from dmole.storage.versions import updates_among
from dmole.streams.stream import Stage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from dmole.experts import ExpertLibrary
    from dmole.module import ContinualModule
    from dmole.routing import Router
    from dmole.run.schema import RunSettings
    from dmole.run.state import SequenceState

log = logging.getLogger("dmole")

_READ = ("experts/", "router/", "model.json")
"""Beginnings of the names of the files that an evaluation reads."""


class HoldsExperts(Protocol):
    """A base model with a library of experts and a router."""

    @property
    def library(self) -> ExpertLibrary:
        """The experts."""

    @property
    def router(self) -> Router:
        """The router."""


def load_experts_and_router(module: HoldsExperts, run: Path) -> None:
    """Load the experts and the router of a run folder into a module without experts.

    The tensors must be finite, of the shapes that the model expects and of the expert whose name
    their file has. All files must be those that the run has written, see ``digests.json``.
    Experts that ``disabled.json`` names are left out.

    Args:
        module: Has the base model of the run, without experts.
        run: The run folder.

    Raises:
        ValueError: If a part is missing, does not fit or was changed; names file and expert.
    """
    digests = read_digests(run)
    names = read_names(run, digests)
    kept = enabled(run, names)
    if module.router.common in names and module.router.common not in kept:
        raise ValueError(f"{run / DISABLED} names {module.router.common!r}, which all tasks share")
    for name in kept:
        with refusing(run / "experts" / name, "expert"):
            load_expert(module.library, name, run / "experts" / name, saved_as=name)
    with refusing(run / "router", "router"):
        module.router.load(run / "router")
    module.router.updates = updates_among(names, module.router.updates)
    if digests is None:
        log.warning("%s has no %s: only part of its files can be verified", run, FILE)
    else:
        verify_files(run, digests, lambda name: name.startswith(_READ))
    _check_router(module.router, names, run)
    if disabled := [name for name in names if name not in kept]:
        log.info("%s: disabled experts: %s", run, ", ".join(disabled))
        take_out(module.router, *disabled)


def read_router(run: Path) -> tuple[Router, RunSettings]:
    """Return the router of a run with what it has learned, without the base model.

    Args:
        run: The run folder.

    Returns:
        The router and the settings of the run.

    Raises:
        ValueError: If a file is missing, does not fit or was changed; names it.
    """
    settings, digests = read_run_settings(run), read_digests(run)
    router = build_router(settings)
    with refusing(run / "router", "router"):
        router.load(run / "router")
    router.updates = updates_among(read_names(run, digests), router.updates)
    if digests is not None:
        verify_files(run, digests, lambda name: name.startswith(("router/", MODEL_FILE)))
    return router, settings


def read_names(run: Path, digests: Digests | None) -> list[str]:
    """Return the names of the experts of a run, in order.

    Raises:
        ValueError: If ``experts.json`` is missing or lists other experts than the run has.
    """
    index = run / "experts" / "experts.json"
    if not index.is_file():
        raise ValueError(f"{run} has no experts: {index} is missing")
    names = read_json(index, "experts")
    if not isinstance(names, list):
        raise ValueError(f"{index}: expected a list of names, got {type(names).__name__}")
    for name in names:
        check_name(name, f"{index}: expert name")
    for name, count in Counter(names).items():
        if count > 1:
            raise ValueError(f"{index} names the expert {name!r} {count} times")
        if not (run / "experts" / name).is_dir():
            raise ValueError(f"{index} names the expert {name!r}, which has no folder beside it")
    for name in sorted(_written(run, digests) - set(names)):
        raise ValueError(f"{index} does not name the expert {name!r}, which has a folder beside it")
    return list(names)


def stages_to_evaluate(state: SequenceState, module: ContinualModule, run: Path) -> list[Stage]:
    """Return the trained stages of a run, each with those of its tasks that are evaluated.

    Args:
        state: Has the data to evaluate, and the stream for runs older than ``digests.json``.
        module: Has the experts of the run.
        run: The run folder.

    Raises:
        ValueError: If the stages have other experts than the run; names one.
    """
    stages, names = read_stages(run), module.library.names
    if stages is None:
        made = state.stream.stages(state.data.training_task_names)
        stages = [replace(stage, common=module.router.common) for stage in made]
        stages = list(itertools.takewhile(lambda stage: set(stage.experts) <= set(names), stages))
    stages = _without(stages, read_disabled(run))
    experts = {name for stage in stages for name in stage.experts}
    for name in [*(name for name in names if name not in experts), *sorted(experts - set(names))]:
        raise ValueError(
            f"the expert {name!r} is in {'experts' if name in names else 'stages'} of {run} alone: "
            "a run of an earlier version is evaluated on all of its tasks, in their order"
        )
    tasks = set(state.data.task_names)
    return [replace(s, tasks=tuple(task for task in s.tasks if task in tasks)) for s in stages]


def inherit_fingerprints(state: SequenceState, module: ContinualModule, run: Path) -> None:
    """Take the digests of training samples, which an evaluation does not read, from the run."""
    path, found = run / "metrics.json", state.fingerprints(module)["data"]
    content = read_json(path, "metrics") if path.is_file() else {}
    try:
        saved = content["fingerprints"]["data"]
        for task in found.keys() & saved.keys():
            found[task] = {**saved[task], **found[task]}
    except (KeyError, TypeError, AttributeError):
        return  # a run of an earlier version


def read_stages(run: Path) -> list[Stage] | None:
    """Return the trained stages of a run; None if the run is older than ``digests.json``.

    Raises:
        ValueError: If ``digests.json`` cannot be read; names it.
    """
    digests = read_digests(run)
    if digests is None:
        return None
    return [_stage(run, number, content) for number, content in enumerate(digests.stages, start=1)]


def _without(stages: Sequence[Stage], disabled: Sequence[str]) -> list[Stage]:
    """Return the stages whose expert is not disabled, numbered anew: a number is a row."""
    left = [stage for stage in stages if stage.expert not in disabled]
    return [replace(stage, index=index) for index, stage in enumerate(left, start=1)]


def _stage(run: Path, number: int, content: Mapping[str, Any]) -> Stage:
    where = f"{run / FILE}: stage {number}"
    tasks, common = content.get("tasks"), content.get("common")
    if content.get("index") != number or not isinstance(tasks, list) or not tasks:
        raise ValueError(f"{where} must have its index and tasks")
    names = [content.get("name"), content.get("expert"), *tasks, *([common] if common else [])]
    for name in names:
        check_name(name, where)
    return Stage(number, names[0], tuple(tasks), names[1], common=common)


def _written(run: Path, digests: Digests | None) -> set[str]:
    """Return the experts that have a folder, in an older run as far as the disk shows."""
    if digests is None:
        return {path.parent.name for path in (run / "experts").glob("*/*.safetensors")}
    parts = (name.split("/") for name in digests.files)
    return {part[1] for part in parts if part[0] == "experts" and len(part) > 2}


def _check_router(router: Router, names: Sequence[str], run: Path) -> None:
    """Raise unless the router knows the experts of the run."""
    index, inner = run / "router" / INDEX, learned_part(router)
    if inner is None:
        return
    fitted, experts = set(inner.tensors()), set(names)
    for name in sorted(fitted - experts):
        raise ValueError(f"router {index} knows the expert {name!r}, which the run does not have")
    unknown = sorted(experts - fitted - {router.common})
    if unknown:
        raise ValueError(f"router {index} does not know the expert {unknown[0]!r} of the run")
