"""Brings an expert of another run on the same base model into a run, with its router entry."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dmole.editing.draft import Draft
from dmole.editing.renaming import check_free
from dmole.editing.source import OpenRun
from dmole.routing import OracleRouter
from dmole.routing.entries import add_entry, learned_part
from dmole.run.identity import check_base_of_run
from dmole.streams.stream import Stage

_ADDRESS = re.compile(r"[a-z]+://")
_PATHS = ("train", "test", "image_root", "test_image_root")
_TESTED = (
    *("test", "format", "side_files", "columns", "images", "limit"),
    *("metric", "max_new_tokens", "prompt", "prompt_suffix"),
)
"""Settings of a task that its test samples are read, asked and scored by."""


def check_receives(source: OpenRun, name: str) -> None:
    """Raise unless a run can have another expert.

    Args:
        source: The run.
        name: Name of the new expert.

    Raises:
        ValueError: If its experts answer only together or are mixed by token, one of them is
            disabled, or the name is not allowed or taken.
    """
    source.check_separable()
    mixed = source.router.mixing is not None or any(map(source.is_mixture, source.names))
    if mixed or source.router.common is not None:
        raise ValueError(
            f"{source.run} mixes its experts within linears ({type(source.router).__name__}): an "
            "expert that was trained without them has another layout of ranks"
        )
    if not isinstance(source.router, OracleRouter) and learned_part(source.router) is None:
        kind = type(source.router).__name__
        raise ValueError(f"{source.run} has a router without entries for experts: {kind}")
    check_free(source, name)
    source.check_enabled(source.names)


def import_expert(
    source: OpenRun, other: OpenRun, name: str, new: str, *, fitted: bool, accept: bool = False
) -> Draft:
    """Return a run with an expert of another run, and with the tasks of that expert.

    Args:
        source: The run.
        other: The run that has the expert.
        name: Name of the expert there.
        new: Its name in the result. A task of the same name as the expert is renamed with it.
        fitted: Whether the caller fits its router entry to samples. Otherwise the entry of the
            other run is taken, which must have standardized embeddings by the same statistics.
        accept: Whether tokenizer, prompts and image processing of the base models may differ.

    Raises:
        ValueError: If the base models differ, the expert has another layout of ranks, its router
            entry cannot be compared with those of the run, or a name is taken.
    """
    check_receives(source, new)
    _check_given(source, other, name)
    _check_base(source, other, accept)
    draft = Draft.of(source)
    draft.experts[new] = (other.run / "experts" / name, name)
    if not fitted and learned_part(source.router) is not None:
        try:
            add_entry(draft.router, new, other.router, name)
        except ValueError as error:
            raise ValueError(
                f"the expert {name!r} of {other.run} needs --samples FILE, to which its router "
                f"entry is fitted: {error}"
            ) from error
    _bring_tasks(draft, other, name, new)
    draft.edit = {"verb": "import", "experts": [name], "as": new, "from": other.parent}
    return draft


def _bring_tasks(draft: Draft, other: OpenRun, name: str, new: str) -> None:
    """Add the tasks of an expert of another run, and its stage."""
    tasks = _tasks_of(draft.source, other, name, new)
    for key, task in tasks.items():
        _add_task(draft, task)
        prints = (other.metrics.get("fingerprints") or {}).get("data") or {}
        if isinstance(prints, dict) and isinstance(prints.get(key), dict):
            draft.data[task["name"]] = prints[key]
    names = tuple(task["name"] for task in tasks.values())
    if isinstance(draft.source.router, OracleRouter) and new not in names:
        raise ValueError(
            f"the expert {name!r} of {other.run} needs --as {names[0]}, since the oracle finds "
            "experts by the names of their tasks"
        )
    add_stage(draft, new, names)


def _check_given(source: OpenRun, other: OpenRun, name: str) -> None:
    """Raise unless another run has an expert that answers without others."""
    other.check_has(name)
    if other.is_mixture(name) or any(s.common for s in other.stages if s.expert == name):
        raise ValueError(
            f"the expert {name!r} of {other.run} is mixed with others within linears: it has "
            f"another layout of ranks than the experts of {source.run}"
        )
    other.check_separable()


def add_stage(draft: Draft, expert: str, tasks: tuple[str, ...]) -> None:
    """Add the stage of a new expert after all others."""
    draft.set_stages([*draft.stages, Stage(0, tasks[0], tasks, expert)])


def _add_task(draft: Draft, task: Mapping[str, Any]) -> None:
    """Add a task that an expert has learned; one of its name that was only scored is replaced."""
    others = [each for each in draft.tasks if each["name"] != task["name"]]
    same = [each for each in draft.tasks if each["name"].casefold() == task["name"].casefold()]
    learned = {name for stage in draft.stages for name in stage.tasks}
    for each in same:
        if each["name"] != task["name"] or each["name"] in learned or not each.get("eval_only"):
            raise ValueError(
                f"{draft.source.run} has a task {each['name']!r} already: --as renames an expert "
                "and, if it has the same name, its task"
            )
    draft.set_tasks([*others, dict(task)])


def new_task(draft: Draft, task: Mapping[str, Any]) -> None:
    """Add a task whose files are named from the working directory.

    Raises:
        ValueError: If the run learns a task of its name.
    """
    _add_task(draft, rebased(task, None, draft.settings.data.get("data_root")))


def _tasks_of(source: OpenRun, other: OpenRun, name: str, new: str) -> dict[str, dict[str, Any]]:
    """Return the tasks of an expert by their name there, as the receiving run finds them."""
    learned = {task for s in other.stages if s.expert == name for task in s.tasks}
    images = other.settings.data.get("images")
    found = {}
    for task in other.settings.data["tasks"]:
        if task["name"] in learned:
            alone = {**task, **standing_alone(task, other.settings.data["tasks"])}
            moved = rebased(
                alone, other.settings.data.get("data_root"), source.settings.data.get("data_root")
            )
            moved["name"] = new if task["name"] == name else task["name"]
            if moved.get("images") is None and images != source.settings.data.get("images"):
                moved["images"] = images
            found[task["name"]] = moved
    if not found:
        raise ValueError(f"{other.run} does not say which task the expert {name!r} has learned")
    return found


def standing_alone(task: Mapping[str, Any], tasks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the settings of a task that change because it no longer updates another one.

    An update without test samples is tested as the task is that it continues.

    Args:
        task: The settings.
        tasks: All tasks of its run, in order.
    """
    if not task.get("update"):
        return {}
    name = str(task["name"]).rpartition("-v")[0]
    first = next(other for other in tasks if other["name"] == name)
    if task.get("test"):
        return {"update": False}
    images = first.get("test_image_root") or first.get("image_root")
    own = task.get("image_root") if images else None  # else it would count for the test file
    of_first = {key: first[key] for key in _TESTED if key in first}
    return {"update": False, "image_root": own, "test_image_root": images, **of_first}


def rebased(task: Mapping[str, Any], old: str | None, new: str | None) -> dict[str, Any]:
    """Return the settings of a task whose paths are found from another ``data_root``.

    Args:
        task: The settings.
        old: Folder that the paths are relative to; None for the working directory.
        new: The same for the result.
    """
    if old == new:
        return dict(task)

    def moved(text: Any) -> Any:
        if not isinstance(text, str) or _ADDRESS.match(text):
            return text
        path = Path(old or ".").expanduser() / Path(text).expanduser()
        return str(path if new is None else path.absolute())

    changed = {key: moved(task.get(key)) for key in _PATHS if task.get(key) is not None}
    side = {key: moved(path) for key, path in (task.get("side_files") or {}).items()}
    return {**task, **changed, **({"side_files": side} if side else {})}


def _check_base(source: OpenRun, other: OpenRun, accept: bool) -> None:
    """Refuse an expert of another base model.

    Raises:
        ValueError: If one of the runs does not record its base model, or weights or a part differ.
    """
    mine = source.metrics.get("fingerprints")
    for run, prints in ((source.run, mine), (other.run, other.metrics.get("fingerprints"))):
        if not isinstance(prints, dict) or not {"base", "base_parts"} <= prints.keys():
            raise ValueError(f"{run / 'metrics.json'} does not record the base model of the run")
    assert isinstance(mine, dict)
    theirs: Any = other.metrics["fingerprints"]
    if mine["base"] != theirs["base"]:  # an expert adds to weights: no flag accepts others
        raise ValueError(
            f"{other.run} was made with a base model of other weights than {source.run}"
        )
    check_base_of_run(other.run, mine, accept)
