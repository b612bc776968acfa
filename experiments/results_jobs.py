"""The runs of docs/results.md: their settings, and how they start and resume."""

from __future__ import annotations

import copy
import csv
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dmole.run.run_folder import RunLock

ROOT = Path(__file__).resolve().parents[1]
PLAN = yaml.safe_load((ROOT / "experiments" / "results.yaml").read_text(encoding="utf-8"))
COMPARISON = ROOT / "configs" / "comparison.yaml"
OUTPUT = ROOT / "docs" / "results"
SEARCH = OUTPUT / "search.csv"
MARK = ".finished"
"""File with the digest of the settings, written into the folder of a finished run."""


@dataclass(frozen=True)
class Job:
    """One run: the config of a benchmark, a method's config with some keys replaced, and a seed.

    Args:
        name: Name of the run.
        method: Row of the table or table that it belongs to.
        seed: Seed of the run.
        settings: Content of the method's config.
        configs: Configs below it.
        group: Folder of the runs of another table; empty for those of the table of all methods.
    """

    name: str
    method: str
    seed: int
    settings: dict[str, Any]
    configs: tuple[Path, ...] = (COMPARISON,)
    group: str = ""

    def folder(self, root: Path) -> Path:
        """Return its run folder below the folder of all runs."""
        return root / self.group / self.name / f"version_{self.seed}"

    @property
    def digest(self) -> str:
        """Return the digest of all settings: those of the benchmark and those of this job."""
        contents = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in self.configs]
        return hashlib.sha256(yaml.safe_dump([*contents, self.settings]).encode()).hexdigest()

    def finished(self, runs: Path) -> bool:
        """Return whether the run is finished, by this or an earlier process.

        Raises:
            SystemExit: If the folder holds a run with other settings.
        """
        mark = self.folder(runs) / MARK
        if not mark.is_file():
            return False
        if mark.read_text(encoding="utf-8") != self.digest:
            raise SystemExit(f"{mark.parent} was run with other settings: remove it")
        return True

    def run(self, runs: Path) -> bool:
        """Start or resume the run; return whether it succeeded."""
        folder = self.folder(runs)
        if self.finished(runs):  # by another process in the meantime
            return True
        config = runs / self.group / "configs" / f"{self.name}.yaml"
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(yaml.safe_dump(self.settings, sort_keys=False), encoding="utf-8")
        command = [sys.executable, "-m", "dmole", "fit"]
        for path in (*self.configs, config):
            command += ["--config", str(path)]
        command += ["--seed_everything", str(self.seed)]
        command += ["--trainer.name", self.name, "--trainer.version", str(self.seed)]
        command += ["--trainer.default_root_dir", str(runs / self.group)]
        command += ["--trainer.enable_progress_bar", "false"]
        if (folder / "checkpoints" / "last.ckpt").is_file():
            command += ["--ckpt_path", str(folder)]
        elif folder.is_dir():
            clear_unstarted(folder)
        log = runs / "logs" / self.group / f"{self.name}_{self.seed}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as file:
            threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
            ended = subprocess.run(
                command, cwd=ROOT, env=os.environ | threads, stdout=file, stderr=subprocess.STDOUT
            )
        if ended.returncode == 0:
            (folder / MARK).write_text(self.digest, encoding="utf-8")
        print(
            f"{self.name} seed {self.seed}: {'done' if not ended.returncode else log}", flush=True
        )
        return ended.returncode == 0


def clear_unstarted(folder: Path) -> None:
    """Remove the folder of a run that ended before its first checkpoint.

    Raises:
        SystemExit: If a process is writing to the folder; the message names the process.
    """
    lock = RunLock(folder)
    try:
        lock.acquire()
    except ValueError as error:
        raise SystemExit(str(error)) from error
    shutil.rmtree(folder)
    lock.release()


def replaced(settings: Any, key: str, value: Any) -> Any:
    """Return settings with the value at a dotted key replaced; the key must exist.

    Raises:
        KeyError: If the key does not exist.
    """
    result = copy.deepcopy(settings)
    *path, last = [int(part) if part.isdigit() else part for part in key.split(".")]
    inner = result
    for part in path:
        inner = inner[part]
    if last not in (range(len(inner)) if isinstance(inner, list) else inner):
        raise KeyError(f"{key} is not set in the method's config")
    inner[last] = value
    return result


def method_settings(row: str) -> dict[str, Any]:
    """Return the content of a method's config."""
    path = ROOT / "configs" / "methods" / f"{row}.yaml"
    settings: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return settings


def candidates(row: str) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield each candidate value with the settings that contain it."""
    spec = PLAN["rows"][row]
    for value in spec.get("values", ()):
        yield value, replaced(method_settings(row), spec["vary"], value)


def is_searched(row: str) -> bool:
    """Return whether all candidates of a method have a score, or there are none."""
    of = PLAN["rows"][row].get("like", row)
    scored = {r["value"] for r in read_rows(SEARCH) if r["row"] == of}
    return scored.issuperset(str(value) for value, _ in candidates(row))


def chosen(row: str) -> dict[str, Any]:
    """Return the settings of the best candidate; the first of a tie.

    Raises:
        SystemExit: If the search has no score of a candidate.
    """
    tried = list(candidates(row))
    if not tried:
        return method_settings(row)
    of = PLAN["rows"][row].get("like", row)
    scores = {r["value"]: float(r["Last"]) for r in read_rows(SEARCH) if r["row"] == of}
    missing = [value for value, _ in tried if str(value) not in scores]
    if missing:
        raise SystemExit(f"{SEARCH} has no score of {row} with {missing[0]}: run `make search`")
    return max(tried, key=lambda pair: scores[str(pair[0])])[1]


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file; empty if the file is missing."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def search_jobs(rows: Sequence[str]) -> list[tuple[Job, Any]]:
    """Return the runs of the search, each with its candidate value."""
    options = PLAN["search"]
    data = yaml.safe_load(COMPARISON.read_text(encoding="utf-8"))["data"]
    tasks = [task for task in data["tasks"] if task["name"] in options["tasks"]]
    for task in tasks:  # the choice must not depend on test samples
        task["test"] = f"synthetic://{task['name']}/val?size={options['size']}"
    fewer = copy.deepcopy(tasks)
    for task in fewer:
        task["train"] = f"synthetic://{task['name']}/train?size={options['train_size']}"
    jobs = []
    for row in [row for row in rows if "like" not in PLAN["rows"][row]]:
        for index, (value, settings) in enumerate(candidates(row)):
            whole = settings | {"data": {"tasks": fewer}}
            job = Job(f"search_{row}_{index}", row, options["seed"], whole)
            jobs.append((job, value))
    shared = PLAN["shared"]
    for row in [row for row in rows if row in shared["rows"]]:
        for index, value in enumerate(shared["values"]):
            whole = method_settings(row) | {"data": {"tasks": tasks}}
            whole["model"]["optimizer"] = {"init_args": {shared["argument"]: value}}
            job = Job(f"search_shared_{row}_{index}", f"shared_{row}", options["seed"], whole)
            jobs.append((job, value))
    return jobs


def final_jobs(rows: Sequence[str], seeds: Sequence[int]) -> list[Job]:
    """Return the runs of the table, ordered by seed."""
    settings = {row: chosen(row) for row in rows}
    return [Job(row, row, seed, settings[row]) for seed in seeds for row in rows]


def sweep_jobs(name: str) -> list[Job]:
    """Return the runs of another table: D-MoLE, and each row with some keys replaced.

    A row is D-MoLE, or the method under its key ``method``. The runs are on the comparison, or on
    the benchmark under the key ``config`` of the table.
    """
    spec = PLAN["sweeps"][name]
    rows = {"dmole": method_settings("dmole")}
    for row, changes in spec["rows"].items():
        rows[row] = method_settings(changes.get("method", "dmole"))
        for key, value in changes.items():
            if key != "method":
                rows[row] = replaced(rows[row], key, value)
    other = spec.get("config")
    configs = (ROOT / "configs" / other,) if other else (COMPARISON,)
    shared = {} if other else PLAN["rows"]  # runs of the table of all methods
    return [
        Job(row, "dmole", seed, rows[row], configs, "" if row in shared else name)
        for seed in spec["seeds"]
        for row in rows
    ]


def run_all(
    jobs: Sequence[Job],
    runs: Path,
    processes: int,
    then: Callable[[Job], None] = lambda job: None,
) -> list[Job]:
    """Run all unfinished jobs, `processes` at a time; return those that failed.

    Args:
        jobs: The jobs.
        runs: Folder of the runs.
        processes: Runs at a time.
        then: Called with each finished job, also of an earlier process.
    """
    todo = [job for job in jobs if not job.finished(runs)]
    print(f"{len(jobs) - len(todo)} of {len(jobs)} runs are already finished", flush=True)

    def run(job: Job) -> bool:
        well = job.run(runs)
        if well:
            then(job)
        return well

    with ThreadPoolExecutor(processes) as pool:
        results = list(pool.map(run, jobs))
    return [job for job, well in zip(jobs, results, strict=True) if not well]
