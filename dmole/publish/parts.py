"""The parts of a finished run that are published: checked, and without anything about its data."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dmole._version import __version__
from dmole.metrics.evaluated import KEY as EVALUATED
from dmole.metrics.subsample import KEY as SUBSAMPLE
from dmole.metrics.summary import PER_TASK, RUN_FORMAT
from dmole.report.runs import Run, load_run
from dmole.run.bundle import BUNDLE_FILE, FORMAT, BaseReference, is_bundle, is_hub_name
from dmole.run.learned import read_names
from dmole.run.model_file import MODEL_FILE, read_run_settings, write_settings
from dmole.run.schema import RunSettings
from dmole.storage.digests import Digests, file_digest, read_digests, verify_files, write_digests
from dmole.storage.disabled import read_disabled
from dmole.storage.files import read_json, write_json
from dmole.storage.tensors import read_tensor_file

_OF_TASK = ("name", "max_new_tokens", "prompt_suffix", "eval_only")
"""Settings of a task that say how it is asked."""
_OF_DATA = ("max_length", "images")
_OF_TRAINER = ("precision",)
_FIGURES = ("Last", "BWT")
_COPIED = ("experts/", "router/")


@dataclass(frozen=True)
class Source:
    """A finished run whose files are verified.

    Args:
        run: Its results.
        settings: Its ``model.json``.
        digests: Digests of its files.
        base: Its base model.
        experts: Names of its experts, in order.
    """

    run: Run
    settings: RunSettings
    digests: Digests
    base: BaseReference
    experts: tuple[str, ...]

    def places(self) -> Iterator[str | Path]:
        """Yield the folders and files that the run names: its own, its base model's, its data."""
        yield self.run.folder
        yield from _absolute(self.settings.base_strings())
        for task in self.settings.data["tasks"]:
            yield from _absolute(value for value in task.values() if isinstance(value, str))
        yield from _absolute([str(self.settings.data.get("data_root") or "")])


def _absolute(texts: Iterable[str]) -> Iterator[str]:
    yield from (text for text in texts if Path(text).is_absolute())


def open_source(folder: Path, base: str | None = None, trusted: Sequence[str] = ()) -> Source:
    """Read and verify a finished run.

    Args:
        folder: The run folder.
        base: Public name of the base model; by default that in the run, if it is one.
        trusted: Modules outside dmole whose classes the run may name.

    Raises:
        ValueError: If the folder is no finished run, a file is missing or was changed, or the
            run is older than the digests of its files.
    """
    if is_bundle(folder):
        raise ValueError(f"{folder} is a bundle already; name the run folder")
    settings = read_run_settings(folder, trusted)
    digests = read_digests(folder)
    if digests is None:
        raise ValueError(f"{folder} is a run of an earlier version: its files cannot be verified")
    run = load_run(folder)
    learned, tasks = run.progress
    if learned < tasks:
        raise ValueError(
            f"{folder} has learned {learned} of {tasks} tasks: finish it with dmole fit --ckpt_path"
        )
    names = read_names(folder, digests)
    if disabled := read_disabled(folder):
        raise ValueError(
            f"{folder} has disabled experts ({', '.join(disabled)}): enable them, or publish a run "
            "without them, which dmole experts RUN remove makes"
        )
    verify_files(folder, digests, lambda name: name.startswith((*_COPIED, MODEL_FILE)))
    for name in digests.files:
        if name.startswith(_COPIED) and name.endswith(".safetensors"):
            read_tensor_file(folder / name)
    weights = run.fingerprint("base")
    if not isinstance(weights, str):
        raise ValueError(f"{folder / 'metrics.json'} has no fingerprint of the base model")
    return Source(run, settings, digests, _reference(settings, weights, base), tuple(names))


def _reference(settings: RunSettings, weights: str, base: str | None) -> BaseReference:
    """Return the base model of a run by its public name, if it has one.

    Raises:
        ValueError: If a given name has another form than ``org/name``.
    """
    arguments = settings.model["backbone"].settings
    place = str(arguments.get("name_or_path", "tiny"))
    if base is not None:
        if not is_hub_name(base):
            raise ValueError(f"--base must be a name on the hub, org/name, got {base!r}")
        same = base == place
        return BaseReference(weights, base, arguments.get("revision") if same else None)
    if place == "tiny":
        return BaseReference(weights, place)
    if is_hub_name(place) and not Path(place).exists():
        return BaseReference(weights, place, arguments.get("revision"))
    return BaseReference(weights)


def write_parts(source: Source, folder: Path, *, experts: bool) -> None:
    """Write settings, figures and router of a run into a folder, and the experts of a bundle.

    Args:
        source: The run.
        folder: An empty folder.
        experts: Whether to write the experts and the mark of a bundle.
    """
    write_settings(folder, _settings(source))
    write_json(folder / "metrics.json", _metrics(source.run.metrics))
    for name in source.digests.files:
        if name.startswith("router/") or (experts and name.startswith("experts/")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source.run.folder / name, folder / name)
    if experts:
        write_json(folder / BUNDLE_FILE, {"format": FORMAT, **made_of(source)})
        for name in source.experts:
            _rename_base(folder / "experts" / name, source.base)


def seal(source: Source, folder: Path, *, without: tuple[str, ...]) -> None:
    """Write the digests of all files of a folder.

    Args:
        source: The run, whose stages are kept.
        folder: The folder.
        without: Names of files that may be edited later.
    """
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name not in without)
    files = {path.relative_to(folder).as_posix(): file_digest(path) for path in paths}
    write_digests(folder, Digests(files, source.digests.stages))


def _settings(source: Source) -> RunSettings:
    """Return the settings that answers need: no data, no training, no path."""
    settings = source.settings
    backbone = settings.model["backbone"]
    arguments = {key: value for key, value in backbone.settings.items() if value is not None}
    arguments |= {"name_or_path": source.base.place}
    arguments.pop("revision", None)
    if source.base.revision is not None:
        arguments["revision"] = source.base.revision
    tasks = [{k: task[k] for k in _OF_TASK if k in task} for task in settings.data["tasks"]]
    return replace(
        settings,
        model={**settings.model, "backbone": replace(backbone, settings=arguments)},
        data={"tasks": tasks} | _chosen(settings.data, _OF_DATA),
        trainer=_chosen(settings.trainer, _OF_TRAINER),
    )


def _chosen(values: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: values[key] for key in keys if key in values}


def _metrics(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of a run and the identity of its base model."""
    per_task = {
        task: _chosen(figures, PER_TASK)
        for task, figures in (metrics.get("per_task") or {}).items()
    }
    fingerprints = _chosen(metrics["fingerprints"], ("base", "base_parts"))
    definitions = _chosen(metrics.get("definitions") or {}, _FIGURES)
    return {
        "format": RUN_FORMAT,
        **_chosen(metrics, _FIGURES),
        "per_task": per_task,
        "definitions": definitions,
        "fingerprints": fingerprints,
        **_chosen(metrics, (SUBSAMPLE, EVALUATED)),
    }


def made_of(source: Source) -> dict[str, Any]:
    """Return the version of dmole and the base model, as plain values."""
    base = source.base
    named = {"name": base.name, "revision": base.revision, "weights": base.weights}
    return {"dmole": __version__, "base": named}


def _rename_base(folder: Path, base: BaseReference) -> None:
    """Replace the place of the base model in the files of an expert by its public name."""
    public = base.name if base.name and is_hub_name(base.name) else None
    for file, key in (
        ("adapter_config.json", "base_model_name_or_path"),
        ("mixture.json", "base_model"),
    ):
        path = folder / file
        if path.is_file():
            write_json(path, {**read_json(path, "expert"), key: public})
