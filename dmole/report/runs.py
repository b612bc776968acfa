"""A finished run, read from its folder: matrices, figures, costs, settings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from dmole._moved import current_path
from dmole.messages import one_line
from dmole.metrics.matrix_file import read_matrix
from dmole.metrics.summary import RUN_FORMAT
from dmole.storage.digests import read_digests, verify_files
from dmole.storage.files import read_json

Array = npt.NDArray[np.float64]

VERIFIED = ("evaluation_matrix.csv", "oracle_matrix.csv", "metrics.json")
"""Files whose digests are verified where the run has ``digests.json``."""


@dataclass(frozen=True)
class Run:
    """The results of one run.

    Args:
        folder: The run folder.
        method: Name of the run: the ``name`` of the trainer, else that of the folder.
        seed: ``seed_everything`` of the config, None if it has none.
        task_names: Tasks in the order of the matrix.
        matrix: Evaluation matrix of shape ``(stages + 1, tasks)``, percent.
        oracle_matrix: The same with oracle gates; None if the run has none.
        metrics: Content of ``metrics.json``.
        timing: Content of ``timing.json``.
        config: Content of ``config.yaml``.
    """

    folder: Path
    method: str
    seed: int | None
    task_names: list[str]
    matrix: Array
    oracle_matrix: Array | None
    metrics: dict[str, Any]
    timing: dict[str, Any]
    config: dict[str, Any]

    def figure(self, name: str) -> float:
        """Return a figure of ``metrics.json`` (percent), NaN if it is missing."""
        return _number(self.metrics.get(name))

    @property
    def task_of_stage(self) -> list[list[int]] | None:
        """Tasks that each stage learned, derived from the oracle matrix, which has only seen tasks.

        None without an oracle matrix: stage ``t`` then learns the ``t``-th task.
        """
        if self.oracle_matrix is None:
            return None
        seen = ~np.isnan(self.oracle_matrix)
        new = seen[1:] & ~seen[:-1]
        return [np.flatnonzero(row).tolist() for row in new]

    def of_task(self, name: str, task: str) -> float:
        """Return a figure of one task (percent), NaN if it is missing or does not apply."""
        return _number(((self.metrics.get("per_task") or {}).get(task) or {}).get(name))

    def oracle(self, name: str) -> float:
        """Return a figure with oracle gates, NaN if it is missing."""
        return _number((self.metrics.get("oracle") or {}).get(name))

    @property
    def parameters(self) -> Mapping[str, Any]:
        """Parameter counts of ``timing.json``."""
        return self.timing.get("parameters") or {}

    @property
    def trainable_per_task(self) -> float:
        """Mean number of trainable parameters per task, 0 if no stage was trained.

        NaN if ``timing.json`` has no parameter counts.
        """
        trainable = self.parameters.get("trainable")
        if self.parameters and not trainable and len(self.matrix) == 1:
            return 0.0
        if isinstance(trainable, Mapping):
            return float(np.mean([float(n) for n in trainable.values()])) if trainable else np.nan
        return _number(trainable)

    @property
    def active_added(self) -> float:
        """Parameters that an average test sample uses beyond the base model, NaN if missing."""
        return _number(self.parameters.get("active")) - _number(self.parameters.get("base"))

    @property
    def seconds(self) -> float:
        """Wall-clock time of the whole run in seconds, NaN if it is missing."""
        return _number(self.timing.get("seconds"))

    @property
    def tasks_to_learn(self) -> list[str]:
        """Tasks with continual figures, without tasks that are only scored."""
        learned = self.metrics.get("per_task") or {}
        return [task for task in self.task_names if task in learned] or self.task_names

    @property
    def learned_tasks(self) -> list[str]:
        """Tasks learned up to the last stage; all tasks if the folder does not record it."""
        if len(self.matrix) == 1:
            stream = (self.section("trainer").get("stream") or {}).get("class_path")
            learns_nothing = stream is None or "ZeroShot" in str(stream)
            return self.tasks_to_learn if learns_nothing else []
        if self.oracle_matrix is None:
            return self.tasks_to_learn
        seen = dict(zip(self.task_names, ~np.isnan(self.oracle_matrix[-1]), strict=True))
        return [task for task in self.tasks_to_learn if seen[task]]

    def section(self, name: str) -> dict[str, Any]:
        """Return ``trainer``, ``model`` or ``data`` of the config, plain or of a ``class_path``."""
        content = self.config.get(name)
        content = content if isinstance(content, dict) else {}
        inner = content.get("init_args") if "class_path" in content else content
        return inner if isinstance(inner, dict) else {}

    @property
    def task_configs(self) -> dict[str, dict[str, Any]]:
        """Settings of each task, by name."""
        tasks = self.section("data").get("tasks")
        rows = [task for task in tasks if isinstance(task, dict)] if isinstance(tasks, list) else []
        return {str(task.get("name")): task for task in rows}

    def fingerprint(self, name: str) -> Any:
        """Return the digest of ``base``, or those of ``data`` by task and split; None if unset."""
        return (self.metrics.get("fingerprints") or {}).get(name)


def load_run(run_dir: str | Path) -> Run:
    """Read a run folder.

    Args:
        run_dir: ``<default_root_dir>/<name>/version_N``.

    Returns:
        The run. ``oracle_matrix.csv`` may be missing, as methods without experts have none.

    Raises:
        FileNotFoundError: If the folder, or a file every run leaves, is missing; names it.
        ValueError: If a file cannot be read as what it should be, or is not the one that the run
            has written; names it.
    """
    folder = Path(run_dir)
    if not folder.is_dir():
        raise FileNotFoundError(f"no run folder {folder}")
    matrix, names = read_matrix(_existing(folder, "evaluation_matrix.csv"))
    config = _renamed(_read_yaml(_existing(folder, "config.yaml")))
    oracle_file = folder / "oracle_matrix.csv"
    oracle = read_matrix(oracle_file)[0] if oracle_file.is_file() else None
    if oracle is not None and oracle.shape != matrix.shape:
        raise ValueError(f"{oracle_file}: shape {oracle.shape}, evaluation matrix {matrix.shape}")
    metrics = _read_metrics(_existing(folder, "metrics.json"))
    digests = read_digests(folder)
    if digests is not None:
        verify_files(folder, digests, VERIFIED.__contains__)
    return Run(
        folder=folder,
        method=_method(folder, config),
        seed=config["seed_everything"] if _is_seed(config.get("seed_everything")) else None,
        task_names=names,
        matrix=matrix,
        oracle_matrix=oracle,
        metrics=metrics,
        timing=_read_timing(_existing(folder, "timing.json")),
        config=config,
    )


def _existing(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(f"run folder {folder} has no {name}: did the run finish?")
    return path


def _read_metrics(path: Path) -> dict[str, Any]:
    """Read ``metrics.json``; every figure with a definition must be a number or missing."""
    metrics = _mapping(path, read_json(path))
    version = metrics.get("format", 1)
    if version not in range(1, RUN_FORMAT + 1):
        raise ValueError(f"{path}: unknown format {version!r}, the newest is {RUN_FORMAT}")
    for name in ("definitions", "per_task", "oracle", "scoring", "fingerprints"):
        _mapping(path, metrics.get(name) or {}, name)
    oracle = metrics.get("oracle") or {}
    _check_numbers(path, metrics, metrics.get("definitions") or {})
    _check_numbers(path, oracle, _mapping(path, oracle.get("definitions") or {}, "oracle"))
    for task, figures in (metrics.get("per_task") or {}).items():
        _check_numbers(path, _mapping(path, figures or {}, f"per_task of {task}"), figures or {})
    return metrics


def _read_timing(path: Path) -> dict[str, Any]:
    timing = _mapping(path, read_json(path))
    _check_numbers(path, timing, ["seconds"])
    parameters = _mapping(path, timing.get("parameters") or {}, "parameters")
    _check_numbers(path, parameters, ["active", "base"])
    trainable = parameters.get("trainable")
    trainable = trainable if isinstance(trainable, Mapping) else {"trainable": trainable}
    _check_numbers(path, trainable, trainable)
    return timing


def _check_numbers(path: Path, figures: Mapping[str, Any], names: Iterable[str]) -> None:
    for name in names:
        value = figures.get(name)
        if not (value is None or (isinstance(value, int | float) and not isinstance(value, bool))):
            raise ValueError(f"{path}: {name} must be a number or null, got {value!r}")


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {one_line(error)}") from error
    return _mapping(path, content)


def _renamed(settings: Any) -> Any:
    """Return settings with one path for each class, wherever it was at the time of the run."""
    if isinstance(settings, list):
        return [_renamed(value) for value in settings]
    if not isinstance(settings, dict):
        return settings
    return {
        key: _class_path(value)
        if key == "class_path" and isinstance(value, str)
        else _renamed(value)
        for key, value in settings.items()
    }


def _class_path(path: str) -> str:
    """Return the current path of a class, through its package and not the module in it.

    Example:
        >>> _class_path("dmole.data.stream.SequentialStream")
        'dmole.streams.SequentialStream'
    """
    top, *modules, name = current_path(path).split(".")
    return ".".join([top, *modules[:1], name]) if top == "dmole" else path


def _mapping(path: Path, content: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(content, dict):
        where = f"{path}: {name}".rstrip(": ")
        raise ValueError(f"{where}: expected keys and values, got {type(content).__name__}")
    return content


def _method(folder: Path, config: dict[str, Any]) -> str:
    """Return the trainer's name, plain or under `init_args`, else the parent of `version_N`."""
    trainer = config.get("trainer")
    if isinstance(trainer, dict):
        name = trainer.get("name") or (trainer.get("init_args") or {}).get("name")
        if name:
            return str(name)
    folder = folder.resolve()
    return folder.parent.name if re.fullmatch(r"version_\d+", folder.name) else folder.name


def _is_seed(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> float:
    return np.nan if value is None else float(value)


OF_A_REPEAT = ("seed", "seed_everything", "version", "default_root_dir", "enable_progress_bar")
"""Settings in which repeats of one method may differ."""


_EMPTY: tuple[Any, ...] = (None, {}, [])


def first_difference(one: Any, other: Any, path: str = "") -> str | None:
    """Return the key of the first setting in which two configs differ, None if they agree.

    A missing setting equals null and an empty list or mapping, so runs of an earlier version
    agree with those of a version that has further settings.

    Example:
        >>> first_difference({"model": {"alpha": 8}}, {"model": {"alpha": 16}})
        'model.alpha'
    """
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = (first_difference(*pair, path) for pair in zip(one, other, strict=True))
        return next((difference for difference in pairs if difference is not None), None)
    if not (isinstance(one, Mapping) and isinstance(other, Mapping)):
        empty = one in _EMPTY and other in _EMPTY
        return None if one == other or empty else path
    for key in sorted({*one, *other} - {*OF_A_REPEAT, "ckpt_path"}):
        difference = first_difference(one.get(key), other.get(key), f"{path}.{key}".lstrip("."))
        if difference is not None:
            return difference
    return None
