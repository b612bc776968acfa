"""Reads the files of a run that `compare` uses; every value is checked before it is used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dmole._moved import current_path
from dmole.messages import excerpt
from dmole.metrics.counterparts import COUNTERPARTS
from dmole.metrics.counterparts import KEY as OF_OTHERS
from dmole.metrics.evaluated import KEY as EVALUATED
from dmole.metrics.evaluated import PHRASES
from dmole.metrics.subsample import KEY as SUBSAMPLE
from dmole.metrics.summary import FIGURES, RUN_FORMAT
from dmole.storage.files import read_json, read_yaml

LONGEST_NAME = 200
"""Most characters of the name of a run or a task."""

_LARGEST = 1e15  # of a count, a time or a score: sums and tables remain exact and finite


def read_metrics(path: Path) -> dict[str, Any]:
    """Return the content of ``metrics.json``.

    Raises:
        ValueError: If it cannot be read, its format is unknown, or a figure is not a number, a
            definition not text, or a section no mapping; names the file and the key.
    """
    metrics = mapping(path, read_json(path))
    version = metrics.get("format", 1)
    if not _is_integer(version) or not 1 <= version <= RUN_FORMAT:
        raise ValueError(f"{path}: unknown format {excerpt(version)}, the newest is {RUN_FORMAT}")
    _check_figures(path, metrics, "")
    _check_figures(path, _section(path, metrics, "oracle"), "oracle.")
    _check_counterparts(path, _section(path, metrics, OF_OTHERS))
    _check_numbers(path, _section(path, metrics, "routing"), None, "routing.")
    retention = _section(path, metrics, "retention")
    _check_numbers(path, retention, ["change"], "retention.")
    _check_texts(path, retention, ["definition"], "retention.")
    scoring = _section(path, metrics, "scoring")
    fingerprints = _section(path, metrics, "fingerprints")
    for task in scoring:
        _section(path, scoring, task, "scoring.")
    digests = _section(path, fingerprints, "data", "fingerprints.")
    for task in digests:
        _section(path, digests, task, "fingerprints.data.")
    _check_subsample(path, _section(path, metrics, SUBSAMPLE))
    _check_evaluated(path, _section(path, metrics, EVALUATED))
    constant = _section(path, metrics, "constant_answer")
    for task in constant:
        stated = _section(path, constant, task, "constant_answer.")
        _check_numbers(path, stated, ["score"], f"constant_answer.{task}.")
    return metrics


def _check_counterparts(path: Path, stated: Mapping[str, Any]) -> None:
    """Check the figures of other libraries."""
    _check_numbers(path, stated, COUNTERPARTS, f"{OF_OTHERS}.")
    for key in ("definitions", "missing"):
        texts = _section(path, stated, key, f"{OF_OTHERS}.")
        _check_texts(path, texts, texts, f"{OF_OTHERS}.{key}.")


def _check_subsample(path: Path, stated: Mapping[str, Any]) -> None:
    """Check what is said of scores on a part of the test samples."""
    for key in ("eval_limit", "seed") if stated else ():
        if not _is_integer(stated.get(key)) or not 0 <= stated[key] <= _LARGEST:
            raise ValueError(
                f"{path}: {SUBSAMPLE}.{key} must be a number, got {excerpt(stated.get(key))}"
            )
    errors = _section(path, stated, "standard_error", f"{SUBSAMPLE}.")
    for task, column in errors.items():
        where = f"{SUBSAMPLE}.standard_error.{task}"
        if not isinstance(column, list):
            raise ValueError(f"{path}: {excerpt(where, quote=False)} must be a list")
        _check_numbers(
            path, {str(stage): error for stage, error in enumerate(column)}, None, f"{where}."
        )


def _check_evaluated(path: Path, stated: Mapping[str, Any]) -> None:
    """Check what is said of cells that were left out."""
    if not stated:
        return
    if stated.get("tasks") not in PHRASES:
        raise ValueError(
            f"{path}: {EVALUATED}.tasks must be one of {', '.join(PHRASES)}, "
            f"got {excerpt(stated.get('tasks'))}"
        )
    missing = _section(path, stated, "missing", f"{EVALUATED}.")
    _check_texts(path, missing, missing, f"{EVALUATED}.missing.")
    learned = stated.get("learned")
    if not isinstance(learned, list) or not all(
        isinstance(tasks, list) and all(isinstance(task, str) for task in tasks)
        for tasks in learned
    ):
        raise ValueError(f"{path}: {EVALUATED}.learned must be lists of names of tasks")


def read_timing(path: Path) -> dict[str, Any]:
    """Return the content of ``timing.json``.

    Raises:
        ValueError: If it cannot be read, or a time or a count is not a number; names the file and
            the key.
    """
    timing = mapping(path, read_json(path))
    _check_numbers(path, timing, ["seconds"])
    phases = timing.get("phases") or []
    if not isinstance(phases, list):
        raise ValueError(f"{path}: phases must be a list, got {excerpt(phases)}")
    for index, phase in enumerate(phases):
        _check_numbers(path, mapping(path, phase, f"phases[{index}]"), ["samples"])
    parameters = _section(path, timing, "parameters")
    _check_numbers(path, parameters, ["active", "base"], "parameters.")
    if isinstance(parameters.get("trainable"), Mapping):
        _check_numbers(path, parameters["trainable"], None, "parameters.trainable.")
    else:
        _check_numbers(path, parameters, ["trainable"], "parameters.")
    return timing


def read_config(path: Path) -> dict[str, Any]:
    """Return the content of ``config.yaml``, with the current path of each class.

    Raises:
        ValueError: If it cannot be read, or the settings of the trainer, the model or the data
            have another form; names the file and the key.
    """
    config = mapping(path, _renamed(read_yaml(path)))
    sections = {}
    for name in ("trainer", "model", "data"):
        section = _section(path, config, name)
        if "class_path" in section:
            section = _section(path, section, "init_args", f"{name}.")
        sections[name] = section
    _section(path, sections["trainer"], "stream", "trainer.")
    _section(path, sections["model"], "backbone", "model.")
    check_name(path, sections["trainer"].get("name"), "trainer.name")
    tasks = sections["data"].get("tasks") or []
    if not isinstance(tasks, list) or not all(isinstance(task, Mapping) for task in tasks):
        raise ValueError(f"{path}: data.tasks must be a list of mappings, got {excerpt(tasks)}")
    for index, task in enumerate(tasks):
        check_name(path, task.get("name"), f"data.tasks[{index}].name")
    return config


def check_name(path: Path, name: object, where: str) -> None:
    """Raise unless the name of a run or a task is missing or a short text or number.

    Raises:
        ValueError: If it has another form; names the file and the key.
    """
    if name is not None and (
        not isinstance(name, str | int | float) or len(str(name)) > LONGEST_NAME
    ):
        raise ValueError(
            f"{path}: {where} must be a text of at most {LONGEST_NAME} characters, "
            f"got {excerpt(name)}"
        )


def mapping(path: Path, content: Any, where: str = "") -> dict[str, Any]:
    """Return content if it is a mapping.

    Raises:
        ValueError: If it is not; names the file and the key.
    """
    if not isinstance(content, dict):
        what = f"{path}: {where}: " if where else f"{path}: "
        raise ValueError(f"{what}expected keys and values, got {type(content).__name__}")
    return content


def _section(path: Path, content: Mapping[str, Any], key: str, prefix: str = "") -> dict[str, Any]:
    """Return a mapping under a key; an empty one if it is missing or null."""
    value = content.get(key)
    return {} if value is None else mapping(path, value, excerpt(f"{prefix}{key}", quote=False))


def _check_figures(path: Path, figures: Mapping[str, Any], prefix: str) -> None:
    """Check the figures of all gates or of oracle gates: means, those of each task, definitions."""
    definitions = _section(path, figures, "definitions", prefix)
    _check_texts(path, definitions, definitions, f"{prefix}definitions.")
    _check_numbers(path, figures, {*FIGURES, *definitions}, prefix)
    by_task = _section(path, figures, "per_task", prefix)
    for task in by_task:
        of_task = _section(path, by_task, task, f"{prefix}per_task.")
        _check_numbers(path, of_task, None, f"{prefix}per_task.{task}.")


def _check_numbers(
    path: Path, figures: Mapping[str, Any], names: Iterable[str] | None, prefix: str = ""
) -> None:
    """Check values by key, all keys without names: each is a number in range or null."""
    for name in sorted(figures if names is None else names):
        value = figures.get(name)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (number and abs(value) <= _LARGEST):
            key = excerpt(f"{prefix}{name}", quote=False)
            raise ValueError(
                f"{path}: {key} must be null or a number up to {_LARGEST:.0e}, got {excerpt(value)}"
            )


def _check_texts(
    path: Path, texts: Mapping[str, Any], names: Iterable[str], prefix: str = ""
) -> None:
    for name in names:
        value = texts.get(name)
        if not (value is None or isinstance(value, str)):
            key = excerpt(f"{prefix}{name}", quote=False)
            raise ValueError(f"{path}: {key} must be null or text, got {excerpt(value)}")


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _renamed(settings: Any) -> Any:
    """Return settings with one path for each class, wherever it was at the time of the run."""
    if isinstance(settings, list):
        return [_renamed(value) for value in settings]
    if not isinstance(settings, dict):
        return settings
    return {
        key: class_path(value)
        if key == "class_path" and isinstance(value, str)
        else _renamed(value)
        for key, value in settings.items()
    }


def class_path(path: str) -> str:
    """Return the current path of a class, through its package and not the module in it.

    Example:
        >>> class_path("dmole.data.stream.SequentialStream")
        'dmole.streams.SequentialStream'
    """
    if not path.startswith("dmole.") or len(path) > LONGEST_NAME:
        return path
    top, *modules, name = current_path(path).split(".")
    return ".".join([top, *modules[:1], name])
