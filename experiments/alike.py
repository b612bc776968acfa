"""Methods on alike tasks, in two orders: search of the learning rate, runs and tables.

    python -m experiments.alike search           # the learning rate of each method
    python -m experiments.alike run              # all rows, both orders, all seeds
    python -m experiments.alike run --rows seq_ft --orders given --seeds 0
    python -m experiments.alike write            # the tables of docs/alike.md

Finished runs are skipped and interrupted ones resume. The settings are in `alike.yaml`.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from dmole.metrics import read_matrix
from dmole.report.compare import compare
from dmole.storage.files import write_csv
from experiments.alike_tables import write_page
from experiments.results import refuse_failed
from experiments.results_jobs import OUTPUT, ROOT, Job, method_settings, read_rows, run_all

PLAN: dict[str, Any] = yaml.safe_load(
    (ROOT / "experiments" / "alike.yaml").read_text(encoding="utf-8")
)
CONFIG = ROOT / "configs" / "benchmarks" / "alike.yaml"
SEARCH = OUTPUT / "alike" / "search.csv"


def row_settings(row: str) -> dict[str, Any]:
    """Return the method's config of a row with its replaced keys."""
    spec = PLAN["rows"][row]
    settings = method_settings(spec["method"])
    for key, value in spec.get("replace", {}).items():
        inner = settings
        *path, last = key.split(".")
        for part in path:
            inner = inner[part]
        inner[last] = value
    return settings


def with_rate(settings: dict[str, Any], rate: float) -> dict[str, Any]:
    """Return the settings with a learning rate."""
    result = copy.deepcopy(settings)
    result["model"]["optimizer"] = {"init_args": {"lr": rate}}
    return result


def search_jobs(rows: Sequence[str]) -> list[tuple[Job, float]]:
    """Return the runs of the search, on validation samples, each with its learning rate."""
    options = PLAN["search"]
    data = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["data"]
    tasks = [task for task in data["tasks"] if task["name"] in options["tasks"]]
    for task in tasks:  # the choice must not depend on test samples
        task["test"] = task["test"].replace("/test?", "/val?")
    jobs = []
    for row in [row for row in rows if "search" not in PLAN["rows"][row]]:
        for rate in options["values"]:
            settings = with_rate(row_settings(row), rate) | {"data": {"tasks": tasks}}
            jobs.append((Job(f"{row}_{rate:g}", row, options["seed"], settings, (CONFIG,)), rate))
    return jobs


def write_search(jobs: Sequence[tuple[Job, float]], runs: Path) -> None:
    """Write the scores of all learning rates."""
    kept = [r for r in read_rows(SEARCH) if r["row"] not in {job.method for job, _ in jobs}]
    for job, rate in jobs:
        matrix, _ = read_matrix(job.folder(runs) / "evaluation_matrix.csv")
        last = f"{float(matrix[-1].mean()):.2f}"
        kept.append({"row": job.method, "rate": f"{rate:g}", "Last": last})
    write_csv(SEARCH, ("row", "rate", "Last"), kept)


def chosen_rate(row: str) -> float:
    """Return the learning rate of a row; the first of a tie.

    Raises:
        SystemExit: If the search has no score of the row.
    """
    of = PLAN["rows"][row].get("search", row)
    scores = {float(r["rate"]): float(r["Last"]) for r in read_rows(SEARCH) if r["row"] == of}
    if not scores:
        raise SystemExit(f"{SEARCH} has no score of {of}: run `python -m experiments.alike search`")
    return max(scores, key=scores.__getitem__)


def final_jobs(rows: Sequence[str], order: str, seeds: Sequence[int]) -> list[Job]:
    """Return the runs of one order of the tasks, ordered by seed."""
    configs = (CONFIG, *(ROOT / path for path in PLAN["orders"][order]))
    settings = {row: with_rate(row_settings(row), chosen_rate(row)) for row in rows}
    return [Job(row, row, seed, settings[row], configs) for seed in seeds for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("search", "run", "write"))
    parser.add_argument("--rows", nargs="+", default=list(PLAN["rows"]), choices=PLAN["rows"])
    parser.add_argument("--seeds", nargs="+", type=int, default=PLAN["seeds"])
    parser.add_argument("--orders", nargs="+", default=list(PLAN["orders"]), choices=PLAN["orders"])
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "alike")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    if options.what == "search":
        runs = options.runs / "search"
        candidates = search_jobs(options.rows)
        refuse_failed(run_all([job for job, _ in candidates], runs, options.processes), runs)
        write_search(candidates, runs)
        return
    for order in options.orders:
        runs = options.runs / order
        jobs = final_jobs(options.rows, order, options.seeds)
        if options.what == "run":
            refuse_failed(run_all(jobs, runs, options.processes), runs)
        done = [job.folder(runs) for job in jobs if job.finished(runs)]
        compare(done, OUTPUT / "alike" / order)
    if options.what == "write":
        write_page(options.runs)


if __name__ == "__main__":
    main()
