"""Compares a run that extends a finished one with a run that was planned with all tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from dmole.metrics import read_matrix
from experiments.run_content import run_content


@dataclass(frozen=True)
class Equality:
    """Which parts of two runs are equal, bit for bit.

    Args:
        experts: Tensors, shapes and order of all experts.
        routers: Tensors and thresholds of all routers.
        last_row: Scores after the last stage.
        oracle: The whole oracle matrix.
        predictions: Answers, scores and gate sets after the last stage.
        matrix: All cells of the evaluation matrix that the extended run has.
        empty: Number of cells that only the planned run has.
    """

    experts: bool
    routers: bool
    last_row: bool
    oracle: bool
    predictions: bool
    matrix: bool
    empty: int

    @property
    def all(self) -> bool:
        """Whether all is equal; cells may be empty."""
        return all(getattr(self, field.name) for field in fields(self) if field.name != "empty")


def compare_extended(planned: Path, extended: Path) -> Equality:
    """Return which parts of two finished runs are equal.

    Args:
        planned: Folder of the run that had all tasks from its start.
        extended: Folder of the run that learned the last ones after a finished run.

    Raises:
        OSError: If a file is missing.
        ValueError: If a matrix cannot be read.
    """
    ours, theirs = run_content(extended), run_content(planned)
    (matrix, names), (other, other_names) = (
        read_matrix(run / "evaluation_matrix.csv") for run in (extended, planned)
    )
    last = f"predictions/stage_{len(other) - 1}/"
    same_tasks = list(names) == list(other_names) and matrix.shape == other.shape
    empty = np.isnan(matrix)
    return Equality(
        experts=_same(ours, theirs, "experts"),
        routers=_same(ours, theirs, "router"),
        last_row=same_tasks and np.array_equal(matrix[-1], other[-1]),
        oracle=ours["oracle_matrix"] == theirs["oracle_matrix"],
        predictions=_same(ours, theirs, last),
        matrix=same_tasks and np.array_equal(matrix[~empty], other[~empty]),
        empty=int(empty.sum()),
    )


def _same(ours: Mapping[str, str], theirs: Mapping[str, str], start: str) -> bool:
    """Return whether all digests whose names begin so are equal, and there is one."""
    names = {name for name in ours.keys() | theirs.keys() if name.startswith(start)}
    return bool(names) and all(ours.get(name) == theirs.get(name) for name in names)
