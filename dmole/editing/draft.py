"""The run folder that an edit makes: experts, router, settings, then an evaluation of them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from dmole.editing.source import OpenRun
from dmole.experts.export import MIXTURE
from dmole.metrics.summary import RUN_FORMAT
from dmole.routing import Router
from dmole.run.embeddings import carry_embeddings
from dmole.run.loading import as_config
from dmole.run.model_file import CONFIG_FILE, MODEL_FILE, write_settings
from dmole.run.run_files import plain_stage
from dmole.run.schema import RunSettings
from dmole.storage.digests import FILE, Digests, file_digest, read_digests, write_digests
from dmole.storage.disabled import read_disabled, write_disabled
from dmole.storage.files import atomic_path, write_json
from dmole.storage.reading import read_json
from dmole.storage.tensors import read_tensor_file, write_tensor_file
from dmole.storage.yaml_file import read_yaml
from dmole.streams.stream import Stage

METRICS = "metrics.json"
EDITS = "edits"
"""Key of ``metrics.json``: the edits that made a run from its ancestors, oldest first."""

_OF_EVALUATION = (MODEL_FILE, CONFIG_FILE, FILE, METRICS)
"""Files of an evaluation that do not replace those of the run."""


@dataclass
class Draft:
    """What an edited run holds.

    Args:
        source: The run that it was made from.
        experts: Folder of each expert, and the name under which it is saved there, in order.
        stages: Trained stages, numbered from 1.
        settings: Settings with the tasks of the edited run.
        router: Router with an entry for each expert.
        edit: Record of the edit.
        data: Digests of the samples of each task.
    """

    source: OpenRun
    experts: dict[str, tuple[Path, str]]
    stages: list[Stage]
    settings: RunSettings
    router: Router
    edit: dict[str, Any]
    data: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, source: OpenRun) -> Draft:
        """Return a draft that holds what a run holds."""
        folders = {name: (source.run / "experts" / name, name) for name in source.names}
        prints = source.metrics.get("fingerprints")
        data = prints.get("data") if isinstance(prints, dict) else None
        return cls(
            source,
            folders,
            list(source.stages),
            source.settings,
            source.router,
            {},
            dict(data) if isinstance(data, dict) else {},
        )

    @property
    def tasks(self) -> list[dict[str, Any]]:
        """Settings of the tasks, those that are only scored last."""
        return [dict(task) for task in self.settings.data["tasks"]]

    def set_tasks(self, tasks: list[dict[str, Any]]) -> None:
        """Replace the tasks; those that are only scored move to the end."""
        ordered = sorted(tasks, key=lambda task: bool(task.get("eval_only")))  # stable
        data = {**self.settings.data, "tasks": ordered}
        self.settings = replace(self.settings, data=data)

    def set_stages(self, stages: list[Stage]) -> None:
        """Replace the stages, numbered anew."""
        self.stages = [replace(stage, index=index) for index, stage in enumerate(stages, start=1)]


def write_draft(draft: Draft, folder: Path) -> None:
    """Write an edited run that was not evaluated yet.

    Args:
        draft: What it holds.
        folder: An empty folder.

    Raises:
        ValueError: If a file of the source was changed meanwhile; names it.
    """
    for name, (source, saved_as) in draft.experts.items():
        _write_expert(source, saved_as, folder / "experts" / name, name)
    write_json(folder / "experts" / "experts.json", list(draft.experts))
    draft.router.save(folder / "router")
    write_settings(folder, draft.settings)
    _write_config(draft, folder)
    write_json(folder / METRICS, {"format": RUN_FORMAT, **_origin(draft)})
    off = [draft.source.run / "experts" / name for name in read_disabled(draft.source.run)]
    carry_embeddings(draft.source.run, folder, [task["name"] for task in draft.tasks])
    write_disabled(folder, tuple(k for k, (path, _) in draft.experts.items() if path in off))
    seal(draft, folder, {})


def take_evaluation(draft: Draft, folder: Path, evaluation: Path) -> None:
    """Move the results of an evaluation of an edited run into its folder.

    Args:
        draft: What the run holds.
        folder: The folder of the run.
        evaluation: A folder in it, which is then removed.
    """
    digests = read_digests(evaluation)
    assert digests is not None  # an evaluation writes them
    metrics = read_json(evaluation / METRICS, "metrics")
    write_json(folder / METRICS, {**metrics, **_origin(draft, metrics["fingerprints"])})
    for path in sorted(evaluation.iterdir()):
        if path.name not in _OF_EVALUATION:
            path.rename(folder / path.name)
    shutil.rmtree(evaluation)
    results = {k: v for k, v in digests.files.items() if k not in _OF_EVALUATION}
    seal(draft, folder, results)


def _write_expert(source: Path, saved_as: str, target: Path, name: str) -> None:
    """Write the files of an expert, under its name in the edited run."""
    target.mkdir(parents=True)
    mixture = (source / MIXTURE).exists()
    described, stem = (MIXTURE, "mixture") if mixture else ("adapter_config.json", "adapter_model")
    write_json(target / described, read_json(source / described, "expert"))
    tensors = read_tensor_file(source / f"{stem}.safetensors", saved_as)
    write_tensor_file(target / f"{stem}.safetensors", tensors, name)


def _write_config(draft: Draft, folder: Path) -> None:
    """Write the config of the source with the tasks of the edited run, for readers of configs."""
    path = draft.source.run / CONFIG_FILE
    if not path.is_file():
        return
    config = read_yaml(path)
    if isinstance(config, dict) and isinstance(config.get("data"), dict):
        config["data"]["tasks"] = as_config(draft.settings)["data"]["tasks"]
        with atomic_path(folder / CONFIG_FILE) as temporary:
            temporary.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")


def _origin(draft: Draft, found: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the part of ``metrics.json`` that says where the run comes from.

    Args:
        draft: What the run holds.
        found: Fingerprints of an evaluation; None takes those of the source.
    """
    metrics = draft.source.metrics
    prints = dict(found or metrics.get("fingerprints") or {})
    tasks = [task["name"] for task in draft.settings.data["tasks"]]
    if found is None:
        prints["data"] = {name: draft.data[name] for name in tasks if name in draft.data}
    earlier = metrics.get(EDITS)
    origin: dict[str, Any] = {"fingerprints": prints, "parent": draft.source.parent}
    origin[EDITS] = [*(earlier if isinstance(earlier, list) else []), draft.edit]
    starts = metrics.get("experts")
    if isinstance(starts, dict) and (kept := {k: starts[k] for k in draft.experts if k in starts}):
        origin["experts"] = kept
    return origin


def seal(draft: Draft, folder: Path, results: Mapping[str, str]) -> None:
    """Write ``digests.json``, with the digests of results by path and those of all other files."""
    paths = [folder / MODEL_FILE, folder / METRICS]
    paths += sorted((folder / "experts").rglob("*")) + sorted((folder / "router").rglob("*"))
    names = [path.relative_to(folder).as_posix() for path in paths if path.is_file()]
    files = {**results, **{name: file_digest(folder / name) for name in names}}
    write_digests(folder, Digests(files, tuple(plain_stage(stage) for stage in draft.stages)))
