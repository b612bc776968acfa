"""Renames an expert of a run. The results stay; the name is replaced wherever a file has it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dmole.callbacks.evaluation_results import METRICS, ROUTING
from dmole.data.task import RESERVED
from dmole.editing.draft import EDITS, Draft
from dmole.editing.source import READ, OpenRun
from dmole.routing import OracleRouter
from dmole.routing.entries import learned_part, rename_entry, renamed
from dmole.storage.digests import file_digest, verify_file
from dmole.storage.files import atomic_path, check_name, write_csv, write_json
from dmole.storage.reading import check_file, read_bytes, read_json, read_text, refusing

_TABLES = {
    ROUTING: ("gate_set",),
    "allocation.csv": ("expert",),
    "curriculum.csv": ("expert",),
    "segments.csv": ("expert", "owner"),
}
"""Tables with names of experts, and the columns that have them."""


def rename_expert(source: OpenRun, old: str, new: str) -> Draft:
    """Return a run in which an expert has another name. Its tasks keep theirs.

    Args:
        source: The run.
        old: Name of the expert.
        new: Its new name.

    Raises:
        ValueError: If the run does not have the expert, all tasks share it, the name is taken or
            not allowed, or the router finds experts by the names of their tasks.
    """
    source.check_has(old)
    check_free(source, new)
    inner = getattr(source.router, "router", source.router)
    if isinstance(inner, OracleRouter):
        raise ValueError(
            f"{source.run} finds the expert of a sample by the name of its task (OracleRouter): "
            f"{old!r} must keep its name"
        )
    source.check_separable()
    draft = Draft.of(source)
    draft.experts = renamed(draft.experts, old, new)
    if learned_part(draft.router) is not None:
        rename_entry(draft.router, old, new)
    draft.stages = [
        replace(stage, expert=new) if stage.expert == old else stage for stage in draft.stages
    ]
    draft.edit = {"verb": "rename", "experts": [old], "as": new}
    return draft


def check_free(source: OpenRun, name: str) -> None:
    """Raise unless a run can have another expert of a name.

    Raises:
        ValueError: If the name is not allowed, or taken, also if only the case differs, since names
            become folders.
    """
    check_name(name, "expert name")
    if meaning := RESERVED.get(name.casefold()):
        raise ValueError(f"{name!r} stands for {meaning}: choose another expert name")
    taken = {other.casefold(): other for other in [*source.names, source.router.common or ""]}
    if name.casefold() in taken:
        raise ValueError(f"{source.run} has an expert {taken[name.casefold()]!r} already")


def carry_results(source: OpenRun, folder: Path, old: str, new: str) -> dict[str, str]:
    """Copy the results of a run, with another name for one of its experts.

    Args:
        source: The run.
        folder: The folder of the renamed run, which has its own ``metrics.json``.
        old: Name of the expert.
        new: Its new name.

    Returns:
        Digests of the copied files by name; a name in a path of them stays.

    Raises:
        ValueError: If a file was changed since the run wrote it; names it.
    """
    _carry_metrics(source, folder, old, new)
    names = [name for name in source.digests.files if not name.startswith(READ)]
    for name in names:
        verify_file(source.run, name, source.digests.files[name])
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with refusing(source.run / name, "result"):
            _copy(name)(source.run / name, folder / name, lambda text: _renamed(text, old, new))
    timing = source.run / "timing.json"
    if timing.exists():
        content = read_json(timing)
        counts = content.get("parameters") if isinstance(content, dict) else None
        if isinstance(counts, dict) and isinstance(counts.get("trainable"), dict):
            counts["trainable"] = renamed(counts["trainable"], old, new)
        write_json(folder / timing.name, content)
    return {name: file_digest(folder / name) for name in names}


def _carry_metrics(source: OpenRun, folder: Path, old: str, new: str) -> None:
    """Add the figures of a run to the ``metrics.json`` of the renamed one."""
    origin = read_json(folder / METRICS, "metrics")
    metrics = {**source.metrics, "parent": origin["parent"], EDITS: origin[EDITS]}
    starts = metrics.get("experts")
    if isinstance(starts, dict):
        starts = {_renamed(k, old, new): dict(v) for k, v in starts.items()}
        for start in starts.values():
            start["starts_from"] = start["starts_from"] and _renamed(start["starts_from"], old, new)
        metrics["experts"] = starts
    write_json(folder / METRICS, metrics)


def _renamed(gate_set: str, old: str, new: str) -> str:
    """Return a gate set, or the name of an expert, with the new name for the old one."""
    return "+".join(new if name == old else name for name in gate_set.split("+"))


Rename = Callable[[str], str]


def _copy(name: str) -> Callable[[Path, Path, Rename], None]:
    if name in _TABLES:
        return lambda source, target, rename: _copy_table(source, target, _TABLES[name], rename)
    return _copy_predictions if name.startswith("predictions/") else _copy_bytes


def _copy_table(source: Path, target: Path, columns: Sequence[str], rename: Rename) -> None:
    reader = csv.DictReader(io.StringIO(read_text(source)), strict=True)
    rows: list[dict[str, Any]] = list(reader)
    for row in rows:
        row.update({column: rename(row[column]) for column in columns})
    write_csv(target, reader.fieldnames or [], rows)


def _copy_predictions(source: Path, target: Path, rename: Rename) -> None:
    with atomic_path(target) as temporary, temporary.open("w", encoding="utf-8") as file:
        for line in filter(None, read_text(source, limit=None).split("\n")):
            content = json.loads(line)
            content["gate_set"] = rename(content["gate_set"])
            file.write(json.dumps(content, ensure_ascii=False) + "\n")


def _copy_bytes(source: Path, target: Path, rename: Rename) -> None:
    check_file(source)
    with atomic_path(target) as temporary:
        temporary.write_bytes(read_bytes(source, limit=None))
