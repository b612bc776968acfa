"""The tables of docs/scores.md: where an expert helps, and which score knew it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torchmetrics.functional import spearman_corrcoef

from dmole.allocation import Unit
from experiments.block_scores import Scores
from experiments.score_sets import ORACLE, Blocks, sets_of_scores, sets_of_splits

Cells = dict[str, list[tuple[int, float]]]
"""Seeds and values of a row by column, one for each task and seed."""
Rows = dict[str, Cells]


@dataclass(frozen=True)
class Result:
    """What was found of a task with a seed.

    Args:
        task: Name of the task.
        seed: The seed.
        units: The blocks, in the order of the model.
        scores: Scores of the blocks, the random ones and the oracle included.
        values: Score of the task, percent, by the blocks of its expert.
        compared: Scores whose sets of blocks are trained; empty stands for all.
    """

    task: str
    seed: int
    units: Sequence[Unit]
    scores: Mapping[str, Scores]
    values: Mapping[Blocks, float]
    compared: Sequence[str] = ()

    def of_scores(self, budget: float) -> Iterator[tuple[str, float]]:
        """Yield each score with its rule, and the value with the blocks that it picks."""
        for name, how, blocks in self._picked(budget):
            yield f"{_group(name)}, {how}", self.values[blocks]

    def _picked(self, budget: float) -> Iterator[tuple[str, str, Blocks]]:
        """Yield each compared score, its rule, and the blocks that it picks."""
        known = self.compared or [_group(name) for name in self.scores]
        chosen = {name: of for name, of in self.scores.items() if _group(name) in known}
        return sets_of_scores(self.units, chosen, budget)

    def of_splits(self, budget: float) -> Iterator[tuple[str, float]]:
        """Yield each split of the budget and the value with its blocks."""
        for rule, blocks in sets_of_splits(self.units, self.scores, budget):
            yield rule, self.values[blocks]

    def best(self, budget: float) -> float:
        """Return the best value of all sets that were trained under a budget."""
        return max(value for _, value in (*self.of_scores(budget), *self.of_splits(budget)))

    def sets(self, budgets: Iterable[float]) -> Iterator[Blocks]:
        """Yield the sets of blocks that scores and splits pick under some budgets."""
        for budget in budgets:
            yield from (blocks for *_, blocks in self._picked(budget))
            yield from (blocks for _, blocks in sets_of_splits(self.units, self.scores, budget))


def tables(results: Sequence[Result], budgets: Sequence[float]) -> dict[str, str]:
    """Return the tables by their mark on the page, in Markdown."""
    return {
        "blocks": blocks_table(results),
        "correlation": correlation_table(results),
        "within": within_table(results),
        "sets": sets_table(results, budgets),
        "splits": splits_table(results, budgets),
    }


def rank_correlation(scores: Scores, values: Mapping[Blocks, float]) -> float:
    """Return Spearman's rank correlation of a score with the values of single blocks.

    NaN if one of them is the same for all blocks.

    Example:
        >>> rank_correlation({"a": 1.0, "b": 2.0}, {("a",): 30.0, ("b",): 20.0})
        -1.0
    """
    left = torch.tensor([*scores.values()], dtype=torch.float64)
    right = torch.tensor([values[name,] for name in scores], dtype=torch.float64)
    if len(left.unique()) == 1 or len(right.unique()) == 1:
        return math.nan
    return round(float(spearman_corrcoef(left, right)), 6)


def blocks_table(results: Sequence[Result]) -> str:
    """Return the value of each task with an expert in one block alone, mean over seeds."""
    rows = _rows()
    for result in results:
        rows["no expert"][result.task].append((result.seed, result.values[()]))
        for unit in result.units:
            rows[unit.name][result.task].append((result.seed, result.values[unit.name,]))
    return to_markdown("expert in", dict.fromkeys(result.task for result in results), rows)


def correlation_table(results: Sequence[Result]) -> str:
    """Return the rank correlation of each score with the values of single blocks, by task."""
    rows = _rows()
    for result in results:
        for name, scores in result.scores.items():
            if name != ORACLE:
                value = result.seed, rank_correlation(scores, result.values)
                rows[_group(name)][result.task].append(value)
                rows[_group(name)]["mean"].append(value)
    tasks = [*dict.fromkeys(result.task for result in results)]
    return to_markdown("score", [*tasks, "mean"], rows, digits=2)


def within_table(results: Iterable[Result]) -> str:
    """Return the rank correlation of each score among the blocks of one modality."""
    rows = _rows()
    for result in results:
        for modality in dict.fromkeys(unit.modality for unit in result.units):
            inside = [unit.name for unit in result.units if unit.modality == modality]
            for name, scores in result.scores.items():
                if name != ORACLE:
                    some = {block: scores[block] for block in inside}
                    value = rank_correlation(some, result.values)
                    rows[_group(name)][modality].append((result.seed, value))
    modalities = [*dict.fromkeys(column for cells in rows.values() for column in cells)]
    return to_markdown("score", modalities, rows, digits=2)


def sets_table(results: Iterable[Result], budgets: Sequence[float]) -> str:
    """Return the mean value with the blocks that each score picks, and its regret, by budget."""
    rows = _rows()
    for result in results:
        for budget in budgets:
            best = result.best(budget)
            for row, value in result.of_scores(budget):
                rows[row][f"{budget:.1%}"].append((result.seed, value))
                rows[row][f"regret {budget:.1%}"].append((result.seed, best - value))
    columns = [f"{budget:.1%}" for budget in budgets]
    return to_markdown("score", columns + [f"regret {column}" for column in columns], rows)


def splits_table(results: Iterable[Result], budgets: Sequence[float]) -> str:
    """Return the mean value under each split of the budget, with the published ranking."""
    rows = _rows()
    for result in results:
        for budget in budgets:
            found = [*result.of_splits(budget)]
            for rule, value in found:
                rows[rule][f"{budget:.1%}"].append((result.seed, value))
            shares = [value for rule, value in found if rule.startswith("vision ")]
            rows["best share of a task"][f"{budget:.1%}"].append((result.seed, max(shares)))
    return to_markdown("split", [f"{budget:.1%}" for budget in budgets], rows)


def to_markdown(what: str, columns: Iterable[str], rows: Rows, digits: int = 1) -> str:
    """Return a table of means over tasks, then over seeds with their standard deviation.

    n/a stands where no value is defined.
    """
    columns = [*columns]
    lines = [[what, *columns], ["---", *["---:"] * len(columns)]]
    for name, cells in rows.items():
        lines.append([name, *(_mean(cells[column], digits) for column in columns)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _mean(values: Sequence[tuple[int, float]], digits: int) -> str:
    by_seed: dict[int, list[float]] = defaultdict(list)
    for seed, value in values:
        if not math.isnan(value):
            by_seed[seed].append(value)
    means = [np.mean(of_seed) for of_seed in by_seed.values()]
    if not means:
        return "n/a"
    spread = f" ± {np.std(means, ddof=1):.{digits}f}" if len(means) > 1 else ""
    return f"{np.mean(means):.{digits}f}{spread}"


def _group(name: str) -> str:
    """Return the row of a score: the random ones share one."""
    return "random" if name.startswith("random") else name


def _rows() -> Rows:
    return defaultdict(lambda: defaultdict(list))
