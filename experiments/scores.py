"""Do the scores that place experts know where an expert helps? Trains experts to find out.

    python -m experiments.scores                    # everything that is missing, then the tables
    python -m experiments.scores --plan experiments/scores_needs.yaml   # on the deep base model
    python -m experiments.scores --tables           # only the tables of what is there

For each task and seed the scores of all blocks are measured, then an expert is trained in each
block alone, then in each set of blocks that a score or a split of the budget picks. A set is
trained once. Every result is written at once to docs/results/NAME, with the name of the plan, so
the command can be stopped and repeated. The tables, of the tasks and seeds that are complete, go to
docs/scores.md, and the picture to docs/results/NAME.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import yaml

from dmole.allocation import Unit
from dmole.data import Task
from dmole.report.style import save_figure
from dmole.storage.files import write_csv
from experiments.block_gains import Lesson, Recipe
from experiments.block_scores import Scores, random_scores
from experiments.results import fill
from experiments.results_jobs import OUTPUT, ROOT, read_rows
from experiments.score_pictures import gains_figure
from experiments.score_sets import ORACLE, Blocks
from experiments.score_tables import Result, tables

PLAN = ROOT / "experiments" / "scores.yaml"
PAGE = ROOT / "docs" / "scores.md"
DEFAULT = "scores"
"""Name of the plan whose tables have marks without a prefix."""
SCORE_HEADER = ("task", "seed", "score", "modality", "block", "value")
GAIN_HEADER = ("task", "seed", "blocks", "value")
PICTURE = "gains.png"
ALONE = "none"
"""Stands for no blocks: the base model."""


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Args:
        name: Folder of the results below docs/results, and prefix of the tables' marks.
        recipe: How an expert is trained.
        tasks: The tasks.
        seeds: Seeds of everything that is random.
        budgets: Shares of the blocks that get an expert.
        draws: Draws of the random score.
        compared: Scores whose sets of blocks are trained; empty stands for all.
    """

    name: str
    recipe: Recipe
    tasks: tuple[Task, ...]
    seeds: tuple[int, ...]
    budgets: tuple[float, ...]
    draws: int
    compared: tuple[str, ...]

    @property
    def cases(self) -> list[tuple[Task, int]]:
        """All pairs of task and seed, in the order of the seeds."""
        return [(task, seed) for seed in self.seeds for task in self.tasks]

    @classmethod
    def read(cls, path: Path) -> Plan:
        """Read a plan."""
        plan = yaml.safe_load(path.read_text(encoding="utf-8"))
        return cls(
            str(plan["name"]),
            Recipe(plan["base_model"], **plan["recipe"]),
            tuple(Task(**task) for task in plan["tasks"]),
            tuple(plan["seeds"]),
            tuple(plan["budgets"]),
            int(plan["random_draws"]),
            tuple(plan.get("compared", ())),
        )

    def mark(self, part: str) -> str:
        """Return the mark of a table on the page."""
        return part if self.name == DEFAULT else f"{self.name}_{part}"


@dataclass(frozen=True)
class Trial:
    """An expert to train, or scores to measure.

    Args:
        task: The task.
        seed: The seed.
        blocks: Blocks of the expert, none for the base model; None measures scores.
    """

    task: Task
    seed: int
    blocks: Blocks | None


class Record:
    """The results so far, in two files.

    Args:
        folder: Folder of the files; results there are read.
    """

    def __init__(self, folder: Path) -> None:
        self._scores_file, self._gains_file = folder / "scores.csv", folder / "gains.csv"
        self._scores: list[dict[str, Any]] = [*read_rows(self._scores_file)]
        self._gains: list[dict[str, Any]] = [*read_rows(self._gains_file)]

    def add(self, trial: Trial, result: Any) -> None:
        """Add and write what a trial has found."""
        key = {"task": trial.task.name, "seed": str(trial.seed)}
        if trial.blocks is None:
            units, scores = result
            of_case = (trial.task.name, str(trial.seed))
            self._scores = [r for r in self._scores if (r["task"], r["seed"]) != of_case]
            modality = {unit.name: unit.modality for unit in units}
            for score, values in scores.items():
                for block, value in values.items():
                    where = {"score": score, "modality": modality[block], "block": block}
                    self._scores.append(key | where | {"value": repr(value)})
            write_csv(self._scores_file, SCORE_HEADER, self._scores)
        else:
            blocks = "+".join(trial.blocks) or ALONE
            self._gains.append(key | {"blocks": blocks, "value": f"{result:.2f}"})
            write_csv(self._gains_file, GAIN_HEADER, self._gains)

    def scores(self, task: str, seed: int) -> dict[str, Scores]:
        """Return the measured scores of a task and seed; empty if there are none."""
        found: dict[str, Scores] = {}
        for row in self._scores:
            if (row["task"], row["seed"]) == (task, str(seed)):
                found.setdefault(row["score"], {})[row["block"]] = float(row["value"])
        return found

    def modalities(self) -> dict[str, str]:
        """Return the modality of each block, in the order of the model."""
        return {row["block"]: row["modality"] for row in self._scores}

    def gains(self, task: str, seed: int) -> dict[Blocks, float]:
        """Return the score of a task by the blocks of its expert."""
        return {
            () if row["blocks"] == ALONE else tuple(row["blocks"].split("+")): float(row["value"])
            for row in self._gains
            if (row["task"], row["seed"]) == (task, str(seed))
        }

    def result(self, plan: Plan, task: str, seed: int) -> Result:
        """Return what is known of a task and seed; all its single blocks must be."""
        units, values = self.units(), self.gains(task, seed)
        oracle = {unit.name: values[unit.name,] for unit in units}
        scores = self.scores(task, seed) | random_scores(units, seed, plan.draws)
        return Result(task, seed, units, {**scores, ORACLE: oracle}, values, plan.compared)

    def units(self) -> list[Unit]:
        """Return the blocks, without their linears."""
        return [
            Unit(name, modality, (name,), 1)  # type: ignore[arg-type]
            for name, modality in self.modalities().items()
        ]


def missing(plan: Plan, record: Record, task: Task, seed: int) -> list[Trial]:
    """Return what can be done next of a task and seed: scores, then single blocks, then sets."""
    if not {*plan.recipe.trained} <= {*record.scores(task.name, seed)}:
        return [Trial(task, seed, None)]
    done = record.gains(task.name, seed)
    wanted: list[Blocks] = [(), *((name,) for name in record.modalities())]
    if all(blocks in done for blocks in wanted):
        wanted = [*record.result(plan, task.name, seed).sets(plan.budgets)]
    return [Trial(task, seed, blocks) for blocks in dict.fromkeys(wanted) if blocks not in done]


class _Worker:
    """Keeps the last lesson of a process."""

    lesson: Lesson | None = None

    @classmethod
    def of(cls, recipe: Recipe, trial: Trial) -> Lesson:
        """Return the lesson of a trial."""
        kept = cls.lesson
        if kept is None or (kept.recipe, kept.task, kept.seed) != (recipe, trial.task, trial.seed):
            cls.lesson = kept = Lesson(recipe, trial.task, trial.seed)
        return kept


def run_trial(recipe: Recipe, trial: Trial) -> Any:
    """Measure the scores, or train an expert, in this process."""
    torch.set_num_threads(1)
    lesson = _Worker.of(recipe, trial)
    if trial.blocks is None:
        return lesson.units, lesson.scores()
    return lesson.score(trial.blocks)


def run(plan: Plan, record: Record, processes: int) -> None:
    """Do everything that is missing, some trials at a time."""
    context = get_context("spawn")
    while trials := [t for c in plan.cases for t in missing(plan, record, *c)]:
        print(f"{len(trials)} trials", flush=True)
        pool = ProcessPoolExecutor(processes, mp_context=context)
        try:
            done = {pool.submit(run_trial, plan.recipe, trial): trial for trial in trials}
            for future in as_completed(done):
                record.add(done[future], future.result())
        finally:
            pool.shutdown(cancel_futures=True)


def main(words: Iterable[str] | None = None) -> None:
    """Run the trials that are missing, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plan", type=Path, default=PLAN)
    parser.add_argument("--output", type=Path, help="default: docs/results/NAME")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--tables", action="store_true", help="only write the tables")
    options = parser.parse_args(None if words is None else [*words])
    plan = Plan.read(options.plan)
    output = options.output or OUTPUT / plan.name
    record = Record(output)
    if not options.tables:
        run(plan, record, options.processes)
    done = [case for case in plan.cases if not missing(plan, record, *case)]
    if not done:
        raise SystemExit(f"{output} has all results of no task yet")
    results = [record.result(plan, task.name, seed) for task, seed in done]
    for part, text in tables(results, plan.budgets).items():
        fill(plan.mark(part), text, options.page)
    save_figure(gains_figure(results), output / PICTURE)


if __name__ == "__main__":
    main()
