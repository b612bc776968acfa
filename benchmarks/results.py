"""Every method on comparison.yaml: search on a validation slice, final runs, tables and pictures.

    python benchmarks/results.py           # the table of docs/results.md (`make results`)
    python benchmarks/results.py search    # the search before it (`make search`)
    python benchmarks/results.py sweep     # ranks and budgets of D-MoLE, one seed

Each run is a process of its own with one thread, two at a time. What is finished is not run again,
and what was cut goes on where it was, so both can be stopped and started at will. All seeds 0 come
first: the tables are complete, if of fewer seeds, long before the end.
"""

from __future__ import annotations

import argparse
import copy
import csv
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dmole.files import write_csv
from dmole.metrics import read_matrix
from dmole.report.compare import compare

ROOT = Path(__file__).resolve().parents[1]
PLAN = yaml.safe_load((ROOT / "benchmarks" / "results.yaml").read_text(encoding="utf-8"))
COMPARISON = ROOT / "configs" / "comparison.yaml"
OUTPUT = ROOT / "docs" / "results"
PAGE = ROOT / "docs" / "results.md"
SEARCH = OUTPUT / "search.csv"
PICTURES = {
    "comparison": "Mean score on the tasks learned so far, and final scores",
    "forgetting": "Each task's score after each stage, one panel a method",
    "accuracy_parameters": "Final score by trainable parameters",
}
WHAT = ("table", "search", "sweep", "write")


@dataclass(frozen=True)
class Job:
    """One run: a method's config with one key replaced, and a seed."""

    name: str
    method: str
    seed: int
    settings: dict[str, Any]

    def folder(self, runs: Path) -> Path:
        """Return its run folder."""
        return runs / self.name / f"version_{self.seed}"

    def finished(self, runs: Path) -> bool:
        """Return whether it ended well, here or in an earlier process."""
        return (self.folder(runs) / ".finished").is_file()

    def run(self, runs: Path) -> bool:
        """Run it, or go on with it; return whether it ended well."""
        folder = self.folder(runs)
        config = runs / "configs" / f"{self.name}.yaml"
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(yaml.safe_dump(self.settings, sort_keys=False), encoding="utf-8")
        words = [sys.executable, "-m", "dmole", "fit", "--config", str(COMPARISON)]
        words += ["--config", str(config), "--seed_everything", str(self.seed)]
        words += ["--trainer.name", self.name, "--trainer.version", str(self.seed)]
        words += ["--trainer.default_root_dir", str(runs)]
        words += ["--trainer.enable_progress_bar", "false"]
        if (folder / "checkpoints" / "last.ckpt").is_file():
            words += ["--ckpt_path", str(folder)]
        log = runs / "logs" / f"{self.name}_{self.seed}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as file:
            threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
            ended = subprocess.run(
                words, cwd=ROOT, env=os.environ | threads, stdout=file, stderr=subprocess.STDOUT
            )
        if ended.returncode == 0:
            (folder / ".finished").touch()
        print(
            f"{self.name} seed {self.seed}: {'done' if not ended.returncode else log}", flush=True
        )
        return ended.returncode == 0


def replaced(settings: Any, key: str, value: Any) -> Any:
    """Return settings with the value at a dotted key replaced; the key must exist.

    Raises:
        KeyError: If there is no such key.
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
    """Yield each value that is tried and the settings with it."""
    spec = PLAN["rows"][row]
    for value in spec.get("values", ()):
        yield value, replaced(method_settings(row), spec["vary"], value)


def chosen(row: str) -> dict[str, Any]:
    """Return the settings of the best candidate; the first of equals.

    Raises:
        SystemExit: If the search lacks the row.
    """
    tried = list(candidates(row))
    if not tried:
        return method_settings(row)
    of = PLAN["rows"][row].get("like", row)
    scores = {r["value"]: float(r["Last"]) for r in read_rows(SEARCH) if r["row"] == of}
    missing = [value for value, _ in tried if str(value) not in scores]
    if missing:
        raise SystemExit(f"{SEARCH}: {row} was not tried with {missing[0]}: make search")
    return max(tried, key=lambda pair: scores[str(pair[0])])[1]


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file; none if it is missing."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def search_jobs(rows: Sequence[str]) -> list[tuple[Job, Any]]:
    """Return the runs of the search, each with the value it tries."""
    options = PLAN["search"]
    data = yaml.safe_load(COMPARISON.read_text(encoding="utf-8"))["data"]
    tasks = [task for task in data["tasks"] if task["name"] in options["tasks"]]
    for task in tasks:  # test samples have no part in the choice
        task["test"] = f"synthetic://{task['name']}/val?size={options['size']}"
    jobs = []
    for row in [row for row in rows if "like" not in PLAN["rows"][row]]:
        for index, (value, settings) in enumerate(candidates(row)):
            whole = settings | {"data": {"tasks": tasks}}
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
    """Return the runs of the table, all rows of a seed before the next."""
    settings = {row: chosen(row) for row in rows}
    return [Job(row, row, seed, settings[row]) for seed in seeds for row in rows]


def sweep_jobs() -> list[Job]:
    """Return the runs of the sweep: D-MoLE with some keys replaced."""
    jobs = [Job("dmole", "dmole", PLAN["seeds"][0], method_settings("dmole"))]
    for name, changes in PLAN["sweep"].items():
        settings = method_settings("dmole")
        for key, value in changes.items():
            settings = replaced(settings, key, value)
        jobs.append(Job(name, "dmole", PLAN["seeds"][0], settings))
    return jobs


def run_all(jobs: Sequence[Job], runs: Path, processes: int) -> None:
    """Run what is not finished, several at a time; end with an error if one fails."""
    todo = [job for job in jobs if not job.finished(runs)]
    print(f"{len(jobs) - len(todo)} of {len(jobs)} runs are there already", flush=True)
    with ThreadPoolExecutor(processes) as pool:
        results = list(pool.map(lambda job: job.run(runs), todo))
    if not all(results):
        raise SystemExit(f"{results.count(False)} runs failed; their logs are in {runs / 'logs'}")


def write_search(jobs: Sequence[tuple[Job, Any]], runs: Path) -> None:
    """Write every value that was tried and what it reached, the losing ones too."""
    kept = [r for r in read_rows(SEARCH) if r["row"] not in {job.method for job, _ in jobs}]
    for job, value in jobs:
        matrix, _ = read_matrix(job.folder(runs) / "evaluation_matrix.csv")
        row = job.method
        spec = PLAN["rows"].get(row)
        key = spec["vary"] if spec else f"model.optimizer.init_args.{PLAN['shared']['argument']}"
        scores = ";".join(f"{score:.1f}" for score in matrix[-1])
        last = f"{float(matrix[-1].mean()):.2f}"
        kept.append({"row": row, "key": key, "value": str(value), "Last": last, "last row": scores})
    header = ("row", "key", "value", "Last", "last row")
    write_csv(SEARCH, header, kept)
    lines = [header, ("---",) * len(header), *(tuple(row.values()) for row in kept)]
    fill("search", "\n".join(f"| {' | '.join(line)} |" for line in lines))


def fill(part: str, text: str) -> None:
    """Replace a part of the page between its two marks."""
    page = PAGE.read_text(encoding="utf-8")
    begin, end = f"<!-- {part} -->\n", f"<!-- end {part} -->"
    head, _, rest = page.partition(begin)
    _, _, tail = rest.partition(end)
    PAGE.write_text(f"{head}{begin}{text.strip()}\n{end}{tail}", encoding="utf-8")


def write_tables(jobs: Sequence[Job], runs: Path) -> None:
    """Compare the runs and keep every matrix and one config a method beside the tables."""
    done = [job for job in jobs if job.finished(runs)]
    rows = sorted(done, key=lambda job: list(PLAN["rows"]).index(job.name))
    text = compare([job.folder(runs) for job in rows], OUTPUT)
    pictures = "\n".join(f"![{what}](results/{name}.png)" for name, what in PICTURES.items())
    fill("table", f"{text.strip()}\n\n{pictures}")
    scores = []
    for job in rows:
        matrix, tasks = read_matrix(job.folder(runs) / "evaluation_matrix.csv")
        for stage, line in enumerate(matrix):
            cells = {task: f"{score:g}" for task, score in zip(tasks, line, strict=True)}
            scores.append({"row": job.name, "seed": job.seed, "stage": stage} | cells)
    write_csv(OUTPUT / "matrices.csv", tuple(scores[0]), scores)
    for job in rows:
        text = (job.folder(runs) / "config.yaml").read_text(encoding="utf-8")
        path = OUTPUT / "configs" / f"{job.name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace(str(ROOT), "."), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "what", nargs="?", default="table", choices=("table", "search", "sweep", "write")
    )
    parser.add_argument("--rows", nargs="+", default=list(PLAN["rows"]), choices=PLAN["rows"])
    parser.add_argument("--seeds", nargs="+", type=int, default=PLAN["seeds"])
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "results")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    if options.what == "search":
        jobs = search_jobs(options.rows)
        run_all([job for job, _ in jobs], options.runs, options.processes)
        write_search(jobs, options.runs)
        return
    if options.what == "sweep":
        sweep = sweep_jobs()
        run_all(sweep, options.runs, options.processes)
        fill("sweep", compare([job.folder(options.runs) for job in sweep], OUTPUT / "sweep"))
        return
    final = final_jobs(options.rows, options.seeds)
    if options.what == "table":
        run_all(final, options.runs, options.processes)
    write_tables(final, options.runs)


if __name__ == "__main__":
    main()
