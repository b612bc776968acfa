"""A finished run, read from its folder: matrices, figures, costs, settings."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dmole.metrics.counterparts import KEY as COUNTERPARTS
from dmole.metrics.evaluated import KEY as EVALUATED
from dmole.metrics.evaluated import Evaluated, stated_tasks
from dmole.metrics.matrix_file import read_matrix
from dmole.metrics.subsample import Subsample
from dmole.report.older_runs import complete_metrics
from dmole.report.run_files import check_name, read_config, read_metrics, read_timing
from dmole.storage.digests import Digests, read_digests, verify_files
from dmole.storage.files import check_file

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
        metrics: Content of ``metrics.json``, completed for runs of earlier versions.
        timing: Content of ``timing.json``.
        config: Content of ``config.yaml``.
        updates: Updates without a column, since they have no test samples, and whether each was
            learned.
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
    updates: Mapping[str, bool] = field(default_factory=dict)

    def figure(self, name: str) -> float:
        """Return a figure of ``metrics.json`` (percent), NaN if it is missing."""
        return _number(self.metrics.get(name))

    @property
    def subsample(self) -> Subsample | None:
        """The draw of test samples that the scores are of; None if all were scored."""
        return Subsample.of(self.metrics)

    @property
    def evaluated(self) -> Evaluated:
        """Which tasks were evaluated after which stage."""
        return stated_tasks(self.metrics)

    @property
    def task_of_stage(self) -> list[list[int]] | None:
        """Tasks that each stage learned, derived from the oracle matrix, which has only seen tasks.

        None without an oracle matrix: stage ``t`` then learns the ``t``-th task. A run that leaves
        cells empty states the tasks in ``metrics.json``.
        """
        stated = (self.metrics.get(EVALUATED) or {}).get("learned")
        if stated is not None:
            columns = {name: index for index, name in enumerate(self.task_names)}
            return [[columns[task] for task in tasks] for tasks in stated]
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

    def counterpart(self, name: str) -> float:
        """Return a figure under the definition of others (percent), NaN if it is missing."""
        return _number((self.metrics.get(COUNTERPARTS) or {}).get(name))

    def routing_rate(self, name: str) -> float:
        """Return a routing rate (percent), NaN if it is missing or the run has no such router."""
        return _number((self.metrics.get("routing") or {}).get(name))

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
            return float(np.mean([_number(n) for n in trainable.values()])) if trainable else np.nan
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
    def samples_trained(self) -> float:
        """Samples of all stages and epochs, NaN if ``timing.json`` does not count them."""
        phases = self.timing.get("phases") or []
        counts = [_number(lap.get("samples")) for lap in phases if lap.get("phase") == "train"]
        return float(np.sum(counts)) if phases else np.nan

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

    @property
    def progress(self) -> tuple[int, int]:
        """Number of tasks learned and to learn, updates without a column included."""
        learned = len(self.learned_tasks) + sum(self.updates.values())
        return learned, len(self.tasks_to_learn) + len(self.updates)

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
    matrix_file = _existing(folder, "evaluation_matrix.csv")
    matrix, names = read_matrix(matrix_file)
    for name in names:
        check_name(matrix_file, name, "the name of a task")
    config = read_config(_existing(folder, "config.yaml"))
    oracle_file = folder / "oracle_matrix.csv"
    oracle = read_matrix(oracle_file)[0] if os.path.lexists(oracle_file) else None
    if oracle is not None and oracle.shape != matrix.shape:
        raise ValueError(f"{oracle_file}: shape {oracle.shape}, evaluation matrix {matrix.shape}")
    metrics = read_metrics(_existing(folder, "metrics.json"))
    digests = read_digests(folder)
    if digests is not None:
        verify_files(folder, digests, VERIFIED.__contains__)
    return assemble_run(
        folder,
        names,
        matrix,
        oracle=oracle,
        metrics=metrics,
        timing=read_timing(_existing(folder, "timing.json")),
        config=config,
        digests=digests,
    )


def assemble_run(
    folder: Path,
    task_names: list[str],
    matrix: Array,
    *,
    oracle: Array | None,
    metrics: dict[str, Any],
    timing: dict[str, Any],
    config: dict[str, Any],
    digests: Digests | None,
) -> Run:
    """Return a run from the checked content of its files.

    Args:
        folder: The run folder.
        task_names: Tasks in the order of the matrix.
        matrix: Evaluation matrix of shape ``(stages + 1, tasks)``, percent.
        oracle: The same with oracle gates; None if the run has none.
        metrics: Content of ``metrics.json``.
        timing: Content of ``timing.json``.
        config: Content of ``config.yaml``.
        digests: Content of ``digests.json``; None if the run is older than that file.

    Raises:
        ValueError: If a figure has to be derived from ``routing.csv``, which cannot be read.
    """
    run = Run(
        folder=folder,
        method=_method(folder, config),
        seed=config["seed_everything"] if _is_seed(config.get("seed_everything")) else None,
        task_names=task_names,
        matrix=matrix,
        oracle_matrix=oracle,
        metrics=metrics,
        timing=timing,
        config=config,
    )
    updates = _updates(run, digests) if digests is not None and len(matrix) > 1 else {}
    return replace(run, metrics=complete_metrics(run, digests), updates=updates)


def _updates(run: Run, digests: Digests) -> dict[str, bool]:
    """Return the trained tasks without a column, and whether a stage has learned each."""
    tasks = [stage.get("tasks") for stage in digests.stages]
    learned = {str(task) for names in tasks if isinstance(names, list) for task in names}
    data = run.fingerprint("data")
    pairs = data.items() if isinstance(data, Mapping) else ()
    trained = [task for task, splits in pairs if isinstance(splits, Mapping) and "train" in splits]
    return {task: task in learned for task in trained if task not in run.task_names}


def _existing(folder: Path, name: str) -> Path:
    path = folder / name
    if not os.path.lexists(path):
        raise FileNotFoundError(f"run folder {folder} has no {name}: did the run finish?")
    check_file(path)
    return path


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
