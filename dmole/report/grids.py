"""Numeric tables: means and standard deviations over seeds, and the best of each column."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from dmole.report.columns import (
    COLUMNS,
    PER_TASK,
    Column,
    Group,
    counterpart_columns,
    learning_columns,
)
from dmole.report.runs import Run

Pair = tuple[float, float]
"""Mean and sample standard deviation."""


@dataclass(frozen=True)
class Grid:
    """A table of methods and figures.

    Args:
        title: Title of the table.
        columns: Headers of the columns.
        rows: Mean and standard deviation by method and column.
        best: Best cells of the columns, as pairs of method and column.
        whole: Columns written as whole numbers.
        references: Rows that are no method, such as the score of a constant answer.
    """

    title: str
    columns: list[str]
    rows: dict[str, dict[str, Pair]]
    best: set[tuple[str, str]] = field(default_factory=set)
    whole: frozenset[str] = frozenset()
    references: dict[str, dict[str, Pair]] = field(default_factory=dict)

    def row(self, name: str) -> dict[str, Pair]:
        """Return the row of a method or reference."""
        return self.rows[name] if name in self.rows else self.references[name]


CONSTANT = "constant answer"
"""Name of the row with the scores of the most frequent reference as the answer to all samples."""


def mean_and_spread(values: Sequence[float]) -> Pair:
    """Return mean and sample standard deviation (divisor n - 1).

    Returns:
        The mean is NaN if any value is; the standard deviation is NaN for a single value.

    Example:
        >>> mean_and_spread([79.0, 83.0])
        (81.0, 2.8284271247461903)
        >>> mean_and_spread([79.0])
        (79.0, nan)
    """
    numbers = np.asarray(values, dtype=np.float64)
    spread = float(numbers.std(ddof=1)) if len(numbers) > 1 else math.nan
    return float(numbers.mean()), spread


def shown(mean: float, *, whole: bool = False) -> str:
    """Return a mean as printed in tables; zero has no sign.

    Example:
        >>> shown(-0.001), shown(91648.4, whole=True)
        ('0.00', '91,648')
    """
    return f"{round(mean) + 0:,}" if whole else f"{round(mean, 2) + 0.0:.2f}"


def best_of(
    cells: Mapping[str, float], better: Literal["high", "low"], apart: Iterable[str] = ()
) -> set[str]:
    """Return the methods with the best mean as printed; all methods of a tie are best.

    Args:
        cells: Mean by method; NaN is ignored.
        better: Whether high or low is better.
        apart: Methods to ignore, because they were given more than the others.

    Returns:
        Empty if fewer than two methods have the figure, because there is nothing to compare.

    Example:
        >>> sorted(best_of({"a": 1.001, "b": 1.0, "c": 0.9}, "high"))
        ['a', 'b']
    """
    apart = set(apart)
    printed = {
        method: round(mean, 2) + 0.0
        for method, mean in cells.items()
        if method not in apart and not math.isnan(mean)
    }
    if len(printed) < 2:
        return set()
    winner = (max if better == "high" else min)(printed.values())
    return {method for method, mean in printed.items() if mean == winner}


def summary_grid(groups: Group, apart: Iterable[str] = ()) -> Grid:
    """Return all figures of the methods: mean and standard deviation over their runs.

    Args:
        groups: Runs by method.
        apart: Methods that cannot be best.
    """
    grid = _grid("Comparison", COLUMNS, groups, apart)
    constant = _constant_scores(groups)
    if constant:
        mean = (float(np.mean(list(constant.values()))), math.nan)
        row = {name: mean if name in _CONSTANT else _MISSING for name in grid.columns}
        grid.references[CONSTANT] = row
    return grid


def learning_grid(groups: Group, apart: Iterable[str] = ()) -> Grid:
    """Return what the methods learned at each stage and how their routers share experts.

    Args:
        groups: Runs by method.
        apart: Methods that cannot be best.
    """
    return _grid("Learning and routing", learning_columns(groups), groups, apart)


def counterpart_grid(groups: Group, apart: Iterable[str] = ()) -> Grid:
    """Return the figures of the methods under the definitions of other libraries.

    Args:
        groups: Runs by method.
        apart: Methods that cannot be best.
    """
    return _grid("Figures of other libraries", counterpart_columns(), groups, apart)


def _grid(title: str, given: Sequence[Column], groups: Group, apart: Iterable[str]) -> Grid:
    """Return the table of the given columns, without optional ones that no run has."""
    pairs = {
        column.name: {m: mean_and_spread([column.read(r) for r in g]) for m, g in groups.items()}
        for column in given
    }
    columns = [
        column
        for column in given
        if not column.optional or not all(map(math.isnan, _means(pairs[column.name]).values()))
    ]
    best = {
        (method, column.name)
        for column in columns
        if column.better
        for method in best_of(_means(pairs[column.name]), column.better, apart)
    }
    names = [column.name for column in columns]
    rows = {method: {name: pairs[name][method] for name in names} for method in groups}
    whole = frozenset(column.name for column in columns if column.whole)
    return Grid(title, names, rows, best, whole)


def task_grids(groups: Group, apart: Iterable[str] = ()) -> dict[str, Grid]:
    """Return a table for each figure of `PER_TASK`, with one column per task.

    Args:
        groups: Runs by method.
        apart: Methods that cannot be best.
    """
    tasks = next(iter(groups.values()))[0].tasks_to_learn
    constant = _constant_scores(groups)
    grids = {}
    for name, better in PER_TASK.items():
        rows = {
            method: {
                task: mean_and_spread([run.of_task(name, task) for run in runs]) for task in tasks
            }
            for method, runs in groups.items()
        }
        best = {
            (method, task)
            for task in tasks
            for method in best_of({m: row[task][0] for m, row in rows.items()}, better, apart)
        }
        grids[name] = Grid(f"{name} of each task", tasks, rows, best)
        if constant and name in _CONSTANT:
            row = {task: (constant[task], math.nan) for task in tasks}
            grids[name].references[CONSTANT] = row
    return grids


_CONSTANT = ("Last", "AVG")
"""Figures that a constant answer has."""
_MISSING: Pair = (math.nan, math.nan)


def _constant_scores(groups: Group) -> dict[str, float]:
    """Return the score of a constant answer on each task; empty if a run does not state it."""
    run = next(iter(groups.values()))[0]
    stated = run.metrics.get("constant_answer") or {}
    scores = {t: (stated.get(t) or {}).get("score", math.nan) for t in run.tasks_to_learn}
    return {} if any(map(math.isnan, scores.values())) else scores


def spread_of_tasks(runs: Sequence[Run]) -> float:
    """Return the root mean square, over the tasks, of the standard deviation of Last.

    It is larger than the deviation of the mean over tasks where gains and losses cancel.

    Args:
        runs: Runs of one method; NaN for a single one.
    """
    if len(runs) < 2:
        return math.nan
    tasks = runs[0].tasks_to_learn
    scores = np.array([[run.of_task("Last", task) for task in tasks] for run in runs])
    return float(np.sqrt(np.mean(scores.std(axis=0, ddof=1) ** 2)))  # (runs, tasks) -> scalar


def _means(pairs: Mapping[str, Pair]) -> dict[str, float]:
    return {method: mean for method, (mean, _) in pairs.items()}
