"""Compare routers on the same experts: fit a run, then route again with every router.

    python -m experiments.routers                                        # all benchmarks, 3 seeds
    python -m experiments.routers --benchmarks one_wording --seeds 0
    python -m experiments.routers --tables                               # only write the tables

A finished run or comparison is not made again, so the command can be stopped and repeated.
`real` needs its data: dmole data make-example data/real --train_size 1200. Writes
docs/results/routers.csv, with a line for each benchmark, seed and router, and the means over the
seeds to docs/results.md.
"""

from __future__ import annotations

import argparse
import csv
import math
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dmole.callbacks.router_comparison import HEADER, TABLE
from dmole.storage.files import write_csv
from experiments.results import PAGE, fill
from experiments.results_jobs import OUTPUT, ROOT, read_rows

BENCHMARKS = {
    "quickstart": ("quickstart.yaml",),
    "real": ("real.yaml",),
    "one_wording": ("benchmarks/one_wording.yaml",),
    "one_wording_finetune": ("benchmarks/one_wording.yaml", "methods/finetune.yaml"),
}
"""Configs by name; the last one has experts that train alone, one a task on every linear."""
KEYS = ("benchmark", "seed")
SHOWN = {
    "own_expert": "own expert %",
    "last": "Last",
    "oracle_last": "oracle Last",
    "stored_numbers": "stored numbers",
    "multiply_adds": "multiply-adds a sample",
    "experts_a_sample": "experts a sample",
}
Rows = dict[tuple[str, str, str], dict[str, str]]
"""Lines of the table by benchmark, seed and router."""


def run(benchmark: str, seed: int, runs: Path) -> Path | None:
    """Fit and compare, unless that is done; return the table of the comparison, None without it."""
    root = runs / benchmark / str(seed)
    table = root / "routers" / TABLE
    if table.is_file():
        return table
    config = [word for path in BENCHMARKS[benchmark] for word in ("--config", path)]
    folder = root / "run" / "version_0"
    if not (folder / "metrics.json").is_file():
        where = ["--trainer.default_root_dir", str(root), "--trainer.name", "run"]
        more = ["--trainer.evaluate", "last", "--seed_everything", str(seed)]
        resume = ["--ckpt_path", "auto"] if folder.is_dir() else []
        if not _dmole(root, "fit", *config, *where, *more, *resume):
            return None
    done = _dmole(root, "evaluate", str(folder), "--router", "all", "--output", str(table.parent))
    return table if done else None


def _dmole(root: Path, *words: str) -> bool:
    """Run a command with its output in ``log.txt``; return whether it succeeded."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / "log.txt").open("a") as log:
        command = [sys.executable, "-m", "dmole", *words]
        done = subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        print(f"{' '.join(words[:3])}: failed, see {root / 'log.txt'}", file=sys.stderr)
    return done.returncode == 0


def collected(file: Path) -> Rows:
    """Return the lines that the table has so far."""
    return {(row["benchmark"], row["seed"], row["router"]): row for row in read_rows(file)}


def add(rows: Rows, benchmark: str, seed: int, table: Path) -> None:
    """Add the lines of a comparison."""
    with table.open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            key = (benchmark, str(seed), line["router"])
            rows[key] = {"benchmark": benchmark, "seed": str(seed), **line}


def as_text(rows: Rows) -> str:
    """Return the means over the seeds as Markdown, a table a benchmark."""
    parts = []
    for benchmark in BENCHMARKS:
        grouped: dict[str, list[dict[str, str]]] = defaultdict(list)
        for (name, _, router), row in rows.items():
            if name == benchmark:
                grouped[router].append(row)
        if not grouped:
            continue
        header = " | ".join(("router", "seeds", *SHOWN.values()))
        parts += ["", f"### {benchmark}", "", f"| {header} |"]
        parts.append("| --- |" + " ---: |" * (1 + len(SHOWN)))
        for router, lines in grouped.items():
            cells = [_cell([float(line[name]) for line in lines]) for name in SHOWN]
            parts.append(f"| {router} | {len(lines)} | " + " | ".join(cells) + " |")
    return "\n".join(parts) + "\n"


def _cell(values: Sequence[float]) -> str:
    mean = float(np.mean(values))
    if math.isnan(mean):
        return "n/a"
    if mean >= 1000:
        return f"{mean:,.0f}"
    return f"{mean:.1f}" + (f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else "")


def main() -> None:
    """Run what is missing, and write the tables after each comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--benchmarks", nargs="+", choices=[*BENCHMARKS], default=[*BENCHMARKS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "routers")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--tables", action="store_true", help="only write what is finished")
    options = parser.parse_args()
    rows = collected(options.output / "routers.csv")
    for seed in options.seeds:
        for benchmark in options.benchmarks:
            table = options.runs / benchmark / str(seed) / "routers" / TABLE
            found = table if options.tables else run(benchmark, seed, options.runs.absolute())
            if found is not None and found.is_file():
                add(rows, benchmark, seed, found)
            ordered = dict(sorted(rows.items(), key=lambda item: item[0][:2]))
            write_csv(options.output / "routers.csv", (*KEYS, *HEADER), [*ordered.values()])
            fill("routers", as_text(ordered), options.page)


if __name__ == "__main__":
    main()
