"""An expert of another run joins a loaded model, or one leaves it, between two batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dmole.experts import load_expert
from dmole.experts.export import read_expert
from dmole.models.identity import base_parts
from dmole.routing import AllExpertsRouter, OracleRouter, SharedRouter
from dmole.routing.entries import add_entry, learned_part, take_out
from dmole.run.identity import check_base_of_run
from dmole.run.learned import read_names, read_stages
from dmole.run.loading import build_router
from dmole.run.model_file import read_run_settings
from dmole.storage.digests import read_digests, verify_files
from dmole.storage.disabled import read_disabled
from dmole.storage.reading import read_json, refusing
from dmole.storage.versions import versions_of

if TYPE_CHECKING:
    from dmole.inference.model import RoutedModel
    from dmole.routing import Router


def join(model: RoutedModel, run: Path, name: str, trusted: Sequence[str] = ()) -> None:
    """Add an expert of a run, with its router entry, to a loaded model.

    If it is the next version of an expert that the model has, it replaces that one.

    Args:
        model: Receives the expert; unchanged if that fails.
        run: Folder of a run on the same base model, usually one that extends the loaded run.
        name: Name of the expert there.
        trusted: Modules outside dmole whose classes the run may name.

    Raises:
        ValueError: If the name is taken, the run has no such expert or has it disabled, a file is
            missing or was changed, the base models differ, the model has the weights already under
            another name, it has another next version of the expert that the new one continues, or
            the routers cannot be compared; names the run.
    """
    if name in model.experts:
        raise ValueError(f"the model has an expert {name!r} already")
    _check_separable(model)
    settings = read_run_settings(run, trusted)
    digests = read_digests(run)
    if name not in read_names(run, digests) or name in read_disabled(run):
        raise ValueError(f"{run} has no expert {name!r} that is in use")
    parts = {"base_parts": base_parts(model.backbone, model.beams)}
    weights = base_digest(run)
    if None not in (weights, model.base_digest) and weights != model.base_digest:
        raise ValueError(f"{run} was made with a base model of other weights")
    check_base_of_run(run, parts, accept=False, accept_by=None)
    router = build_router(settings, trusted)
    with refusing(run / "router", "router"):
        router.load(run / "router")
    if digests is not None:
        needed = (f"experts/{name}/", "router/")
        verify_files(run, digests, lambda file: file.startswith(needed))
    updates = _updates_with(model, name, run, router)
    load_expert(model.library, name, run / "experts" / name, saved_as=name)
    try:
        _check_new(model, name)
        _move(model, name)
        if not isinstance(model.router, OracleRouter):
            add_entry(model.router, name, router, name)
        model.router.updates = updates
    except BaseException as error:  # such as a device without memory
        model.library.remove(name)
        if isinstance(error, ValueError):
            raise ValueError(f"{run}: {error}") from error
        raise
    model.sources[name] = run / "experts" / name


def leave(model: RoutedModel, name: str) -> None:
    """Take an expert and its router entry out of a loaded model.

    Raises:
        ValueError: If there is no such expert, all tasks share it, or a later version of it is
            there, to which its router entry leads.
    """
    if name not in model.experts:
        known = ", ".join(model.experts) or "none"
        raise ValueError(f"there is no expert {name!r}; the experts are {known}")
    _check_separable(model)
    for new, past in model.router.updates.items():
        if past == name:
            raise ValueError(
                f"the expert {name!r} was updated by {new!r}, which answers the samples of both: "
                f"take {new!r} out first"
            )
    model.library.remove(name)
    take_out(model.router, name)
    model.sources.pop(name, None)
    if model.residency is not None:
        model.residency.forget(name)


def keep_stage(model: RoutedModel, run: Path, stage: int) -> None:
    """Take the experts of later stages out of a loaded model.

    Args:
        model: Has the experts of the run.
        run: The run folder.
        stage: The last stage whose experts stay; 0 keeps none.

    Raises:
        ValueError: If the run does not record its stages, has no such stage, or a later stage has
            trained an expert of an earlier one.
    """
    stages = read_stages(run)
    if stages is None:
        raise ValueError(f"{run} does not record its stages: leave out the stage")
    if not 0 <= stage <= len(stages):
        raise ValueError(f"{run} has the stages 0 to {len(stages)}, not {stage}")
    kept = {name for each in stages[:stage] for name in each.experts}
    later = [name for each in stages[stage:] for name in each.experts]
    for name in later:
        if name in kept:
            raise ValueError(
                f"{run}: a stage after {stage} has trained the expert {name!r} further"
            )
    for name in reversed(dict.fromkeys(later)):
        if name in model.experts:  # it may be disabled
            leave(model, name)


def base_digest(run: Path) -> str | None:
    """Return the SHA-256 of the weights of a run's base model, None if it did not record it."""
    path = run / "metrics.json"
    content = read_json(path, "metrics") if path.exists() else {}
    prints = content.get("fingerprints") if isinstance(content, dict) else None
    digest = prints.get("base") if isinstance(prints, dict) else None
    return digest if isinstance(digest, str) else None


def _updates_with(model: RoutedModel, name: str, run: Path, router: Router) -> Mapping[str, str]:
    """Return the versions of a model's experts with a new expert.

    The new expert replaces the version that it continues if the model has that very expert.

    Raises:
        ValueError: If the model has another next version of that expert; names both.
    """
    updates = model.router.updates
    for past in versions_of(name, router.updates)[1:]:
        if past in model.experts and _is_saved(model, past, run):
            other = next((new for new, before in updates.items() if before == past), None)
            if other is not None:
                raise ValueError(
                    f"{run}: the expert {name!r} continues {past!r}, which {other!r} of the model "
                    "continues already"
                )
            return {**updates, name: past}
    return updates


def _is_saved(model: RoutedModel, name: str, run: Path) -> bool:
    """Return whether an expert of a model is the one that a run has under its name."""
    folders = (model.sources[name], run / "experts" / name)
    mine, other = (read_expert(folder, saved_as=name)[1] for folder in folders)
    return mine.keys() == other.keys() and all(torch.equal(mine[k], other[k]) for k in mine)


def _check_separable(model: RoutedModel) -> None:
    """Raise if the experts of a model answer only together.

    Raises:
        ValueError: If samples share an expert, or experts were trained on top of one another.
    """
    router = model.router
    if router.common is not None or isinstance(router, (AllExpertsRouter, SharedRouter)):
        kind = type(router).__name__
        raise ValueError(f"experts of a {kind} can neither join nor leave: samples share them")
    if learned_part(router) is None and not isinstance(router, OracleRouter):
        raise ValueError(f"experts of a {type(router).__name__} can neither join nor leave")


def _check_new(model: RoutedModel, name: str) -> None:
    """Raise if a model has the weights of a new expert already.

    Otherwise a copy under another name would join, and its update would be added twice.

    Raises:
        ValueError: If another expert has equal tensors; names both.
    """
    residency, mine = model.residency, model.library.tensors(name)
    unloaded = residency.unloaded if residency is not None else ()
    for other in model.experts:
        if other == name:
            continue
        if residency is not None and other in unloaded:
            equal = residency.digest(other) == model.library.digest(name)
        else:
            tensors = model.library.tensors(other)
            equal = mine.keys() == tensors.keys() and all(
                torch.equal(mine[key].cpu(), tensors[key].cpu()) for key in mine
            )
        if equal:
            raise ValueError(f"the model has the weights of {name!r} already, as expert {other!r}")


def _move(model: RoutedModel, name: str) -> None:
    """Move a new expert to the device of the model."""
    for _, expert in model.library.parts(name):
        expert.to(model.device)
