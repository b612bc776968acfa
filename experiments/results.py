"""Every method on comparison.yaml: search on a validation slice, final runs, tables and figures.

    python -m experiments.results                # the table of docs/results.md (`make results`)
    python -m experiments.results search         # its hyperparameter search (`make search`)
    python -m experiments.results rank_budget    # another table; or `blurred` and others
    python -m experiments.results write          # the table of the kept results, without new runs

Each run is a separate process with one thread; two processes run at a time. The results of each
finished run are kept in docs/results/kept, and runs with kept results are skipped; interrupted
runs resume, so the command can be stopped and restarted at any time. The runs are ordered by seed,
and the table is written after every seed.
"""

from __future__ import annotations

import argparse
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dmole.metrics import read_matrix
from dmole.report.compare import compare
from dmole.storage.files import atomic_path, write_csv
from experiments.kept_results import KEPT, commits, is_kept, keep, kept_folder
from experiments.results_jobs import (
    OUTPUT,
    PLAN,
    ROOT,
    SEARCH,
    Job,
    final_jobs,
    is_searched,
    read_rows,
    run_all,
    search_jobs,
    sweep_jobs,
)

PAGE = ROOT / "docs" / "results.md"
PICTURES = {
    "comparison": "Mean score on the tasks learned so far, and final scores",
    "forgetting": "Each task's score after each stage, one panel per method",
    "accuracy_parameters": "Final score by trainable parameters",
}
REFERENCE = "dmole"
"""Method that the others are compared with."""
WHAT = ("table", "search", "write", *PLAN["sweeps"])


def refuse_failed(failed: Sequence[Job], runs: Path) -> None:
    """Exit with an error that names the folder of the logs if a run failed.

    Raises:
        SystemExit: If a run failed.
    """
    if failed:
        raise SystemExit(f"{len(failed)} runs failed; their logs are in {runs / 'logs'}")


def write_search(jobs: Sequence[tuple[Job, Any]], runs: Path) -> None:
    """Write the scores of all values of the search."""
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


def fill(part: str, text: str, page_file: Path | None = None) -> None:
    """Replace the part of a page between two marks, by default of docs/results.md.

    Raises:
        SystemExit: If the page lacks a mark.
    """
    page_file = page_file or PAGE
    page = page_file.read_text(encoding="utf-8")
    begin, end = f"<!-- {part} -->\n", f"<!-- end {part} -->"
    head, opening, rest = page.partition(begin)
    _, closing, tail = rest.partition(end)
    if not opening or not closing:
        raise SystemExit(f"{page_file} lacks the mark {(end if opening else begin).strip()}")
    with atomic_path(page_file) as temporary:
        temporary.write_text(f"{head}{begin}{text.strip()}\n{end}{tail}", encoding="utf-8")


def write_tables() -> None:
    """Compare all kept results; write tables, all matrices and one config per method.

    Raises:
        SystemExit: If no results are kept.
    """
    rows = [row for row in PLAN["rows"] if is_searched(row)]
    jobs = [job for row in rows for job in final_jobs([row], PLAN["seeds"]) if is_kept(job)]
    if not jobs:
        raise SystemExit(f"{KEPT} holds no results of these settings")
    names = {job.name for job in jobs}
    reference = REFERENCE if REFERENCE in names and len(names) > 1 else None
    folders = [kept_folder(job) for job in jobs]
    text = compare(folders, OUTPUT, reference=reference)
    pictures = "\n".join(f"![{what}](results/{name}.png)" for name, what in PICTURES.items())
    fill("table", f"{text.strip()}\n\n{commits(folders)}\n\n{pictures}")
    fill("missing", missing_rows(jobs))
    scores = []
    for job in jobs:
        matrix, tasks = read_matrix(kept_folder(job) / "evaluation_matrix.csv")
        for stage, line in enumerate(matrix):
            cells = {task: f"{score:g}" for task, score in zip(tasks, line, strict=True)}
            scores.append({"row": job.name, "seed": job.seed, "stage": stage} | cells)
    write_csv(OUTPUT / "matrices.csv", tuple(scores[0]), scores)
    for job in jobs:
        with atomic_path(OUTPUT / "configs" / f"{job.name}.yaml") as temporary:
            shutil.copyfile(kept_folder(job) / "config.yaml", temporary)


def run_missing(jobs: Sequence[Job], runs: Path, processes: int) -> list[Job]:
    """Run the jobs without kept results and keep theirs; return those that failed."""
    missing = [job for job in jobs if not is_kept(job)]
    return run_all(missing, runs, processes, then=lambda job: keep(job, runs))


def write_sweep(name: str, runs: Path, processes: int) -> None:
    """Run what another table misses, and write it and the paired differences to its page.

    Raises:
        SystemExit: If a run failed.
    """
    jobs = sweep_jobs(name)
    refuse_failed(run_missing(jobs, runs, processes), runs)
    page = ROOT / "docs" / PLAN["sweeps"][name].get("page", PAGE.name)
    folders = [kept_folder(job) for job in jobs]
    text = compare(folders, OUTPUT / name, reference=REFERENCE)
    fill(name, f"{text.strip()}\n\n{commits(folders)}", page)


def missing_rows(jobs: Sequence[Job]) -> str:
    """Return a sentence that names the methods without a run of every seed.

    Args:
        jobs: Runs whose results are kept.
    """
    runs = Counter(job.name for job in jobs)
    missing = [f"`{row}`" for row in PLAN["rows"] if runs[row] < len(PLAN["seeds"])]
    if not missing:
        return "Every method was run with every seed."
    return f"Not yet run with every seed: {', '.join(missing)}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", default="table", choices=WHAT)
    parser.add_argument("--rows", nargs="+", default=list(PLAN["rows"]), choices=PLAN["rows"])
    parser.add_argument("--seeds", nargs="+", type=int, default=PLAN["seeds"])
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "results")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    runs = options.runs
    if options.what == "search":
        candidates = search_jobs(options.rows)
        refuse_failed(run_all([job for job, _ in candidates], runs, options.processes), runs)
        write_search(candidates, runs)
        return
    if options.what == "write":
        write_tables()
    elif options.what in PLAN["sweeps"]:
        write_sweep(options.what, runs, options.processes)
    else:
        failed = []
        for seed in options.seeds:
            failed += run_missing(final_jobs(options.rows, [seed]), runs, options.processes)
            write_tables()
        refuse_failed(failed, runs)


if __name__ == "__main__":
    main()
