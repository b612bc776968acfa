"""Mutation testing: which small changes of the code do its tests notice?

    pip install cosmic-ray
    python -m experiments.mutation_score --mutants 60                 # of every target
    python -m experiments.mutation_score --targets metrics --mutants 200

Each target is mutated in a copy of the repository, one change at a time, drawn with a seed from all
changes that Cosmic Ray makes; then its fast tests run. The command can be stopped and repeated:
what was tried is not tried again. Writes docs/results/mutations.csv, with a line for each change.
Targets and their tests are listed in `mutation_score.yaml`.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import yaml

from dmole.storage.files import write_csv
from experiments.results_jobs import OUTPUT, ROOT, read_rows

PLAN: dict[str, Any] = yaml.safe_load(
    (ROOT / "experiments" / "mutation_score.yaml").read_text(encoding="utf-8")
)
TABLE = OUTPUT / "mutations.csv"
HEADER = ("target", "module", "line", "operator", "occurrence", "outcome", "change")
SURVIVED = "survived"

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Target:
    """A part of the package with its tests.

    Args:
        name: Its name.
        code: Files that are mutated.
        tests: Files and folders of tests.
    """

    name: str
    code: tuple[str, ...]
    tests: tuple[str, ...]

    @classmethod
    def named(cls, name: str) -> Target:
        """Return a target of `mutation_score.yaml`."""
        spec = PLAN["targets"][name]
        return cls(name, tuple(spec["code"]), tuple(spec["tests"]))

    @property
    def command(self) -> str:
        """Command that runs the tests until one fails."""
        words = (sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *self.tests)
        return shlex.join(words)

    def changes(self, mutants: int) -> list[Any]:
        """Return changes of the code, drawn with a seed; more of them begin with fewer."""
        from cosmic_ray.commands import init
        from cosmic_ray.work_db import use_db

        excluded = re.compile("|".join(PLAN["exclude"]))
        with tempfile.TemporaryDirectory() as folder, use_db(f"{folder}/all.sqlite") as database:
            init(map(Path, self.code), database, {})
            found = [item.mutations[0] for item in database.work_items]
        found = [change for change in found if not excluded.fullmatch(change.operator_name)]
        found.sort(key=lambda c: (str(c.module_path), c.operator_name, c.occurrence))
        random.Random(PLAN["seed"]).shuffle(found)
        return found[:mutants]


def copy_repository(folder: Path) -> None:
    """Copy the files of the repository, so that a change that was left there is undone."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        copy = folder / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((ROOT / name).read_bytes())


def key_of(row: dict[str, Any]) -> tuple[str, ...]:
    """Return what tells a change from others."""
    return tuple(str(row[name]) for name in ("module", "operator", "occurrence"))


def run_target(name: str, mutants: int, work: Path) -> Rows:
    """Try the changes of a target that were not tried, and return a row for each.

    Args:
        name: Name of the target.
        mutants: Number of changes.
        work: Folder of the copies and of what was tried.

    Raises:
        SystemExit: If the tests fail without a change.
    """
    from cosmic_ray.mutating import mutate_and_test

    target, record = Target.named(name), work / f"{name}.csv"
    copy_repository(work / name)
    os.chdir(work / name)
    os.environ |= {"PYTHONPATH": str(work / name), "OMP_NUM_THREADS": "1"}
    if subprocess.run(shlex.split(target.command), capture_output=True, check=False).returncode:
        raise SystemExit(f"the tests of {name} fail without a change: {target.command}")
    tried = {key_of(row): row for row in read_rows(record)}
    rows: Rows = []
    for change in target.changes(mutants):
        row = describe(name, change)
        if key_of(row) not in tried:
            result = mutate_and_test([change], target.command, PLAN["timeout"])
            outcome = "none" if result.test_outcome is None else str(result.test_outcome.value)
            tried[key_of(row)] = row | {
                "outcome": outcome,
                "change": changed_lines(result.diff or ""),
            }
            write_csv(record, HEADER, tried.values())
        rows.append(tried[key_of(row)])
    return rows


def describe(target: str, change: Any) -> dict[str, Any]:
    """Return the place of a change as the beginning of a row."""
    return {
        "target": target,
        "module": str(change.module_path),
        "line": change.start_pos[0],
        "operator": change.operator_name.removeprefix("core/"),
        "occurrence": change.occurrence,
    }


def changed_lines(diff: str) -> str:
    """Return the removed and the added line of a unified diff."""
    body = [line for line in diff.splitlines() if not line.startswith(("---", "+++"))]
    old, new = ([line[1:].strip() for line in body if line.startswith(s)] for s in "-+")
    return f"{' '.join(old)} -> {' '.join(new)}"


def summary(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of a table: changes and the share that was noticed, by target."""
    yield "| target | changes | noticed | share |"
    yield "|---|---:|---:|---:|"
    for name in dict.fromkeys(row["target"] for row in rows):
        own = [row["outcome"] for row in rows if row["target"] == name]
        noticed = len(own) - own.count(SURVIVED)
        yield f"| {name} | {len(own)} | {noticed} | {noticed / len(own):.0%} |"


def main() -> None:
    """Try the changes, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", nargs="+", default=[*PLAN["targets"]], choices=PLAN["targets"])
    parser.add_argument("--mutants", type=int, default=60, help="changes of each target")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "mutations")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    run = partial(run_target, mutants=options.mutants, work=options.work.absolute())
    rows: Rows = [row for row in read_rows(TABLE) if row["target"] not in options.targets]
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        for found in pool.map(run, options.targets):
            rows += found
    write_csv(TABLE, HEADER, rows)
    print("\n".join(summary(rows)))


if __name__ == "__main__":
    main()
