"""Reads and writes the evaluation matrix as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dmole.metrics.subsample import first_header, is_first_header
from dmole.storage.files import read_text, write_csv

_LIMIT = 4 << 20  # bytes of a file; a matrix of 300 tasks has less than one MiB
_LARGEST = 1e6  # no score is larger; means and axes of figures remain finite


def write_matrix(
    path: str | Path,
    matrix: npt.ArrayLike,
    task_names: Sequence[str],
    eval_limit: int | None = None,
) -> None:
    """Write an evaluation matrix: header ``stage,<names>``, one row per stage from 0.

    Args:
        path: The CSV file, written atomically.
        matrix: Scores of shape ``(stages + 1, tasks)``, percent; NaN becomes an empty cell.
            Numbers are written so that reading restores the same bits.
        task_names: One name per column.
        eval_limit: Maximum number of test samples of a task that were scored. The header of the
            first column is then ``stage (eval_limit N)``.

    Raises:
        ValueError: If the shape does not fit the names, a name repeats, or a score is infinite.
    """
    scores = np.asarray(matrix, dtype=np.float64)
    if scores.ndim != 2 or scores.shape[1] != len(task_names):
        raise ValueError(f"matrix of shape {scores.shape} for {len(task_names)} tasks: {path}")
    if len(set(task_names)) != len(task_names):
        raise ValueError(f"task names repeat: {', '.join(task_names)}")
    if np.isinf(scores).any():
        raise ValueError(f"matrix holds an infinite score: {path}")
    first = first_header(eval_limit)
    rows = (
        {first: stage}
        | {
            name: "" if math.isnan(score) else repr(score)
            for name, score in zip(task_names, row, strict=True)
        }
        for stage, row in enumerate(scores.tolist())
    )
    write_csv(Path(path), [first, *task_names], rows)


def read_matrix(path: str | Path) -> tuple[npt.NDArray[np.float64], list[str]]:
    """Read a file written by `write_matrix`.

    Args:
        path: The CSV file.

    Returns:
        Scores of shape ``(stages + 1, tasks)``, NaN for an empty cell, and the task names.

    Raises:
        ValueError: If the file is missing or does not hold an evaluation matrix; the message names
            the file and, if possible, the line.
    """
    lines = io.StringIO(read_text(path, limit=_LIMIT))
    try:
        rows = list(csv.reader(lines, strict=True))
    except csv.Error as error:
        raise ValueError(f"{path}: broken table: {error}") from error
    if not rows or len(rows[0]) < 2 or not is_first_header(rows[0][0]):
        raise ValueError(f"{path}, line 1: expected the header stage,<task names>")
    if len(rows) < 2:
        raise ValueError(f"{path}: no row below the header")
    names = rows[0][1:]
    if len(set(names)) < len(names):
        raise ValueError(f"{path}, line 1: two columns have the same name")
    scores = [_read_row(path, stage, row, len(names)) for stage, row in enumerate(rows[1:])]
    return np.array(scores, dtype=np.float64), names


def _read_row(path: str | Path, stage: int, row: list[str], tasks: int) -> list[float]:
    where = f"{path}, line {stage + 2}"
    if len(row) != tasks + 1:
        raise ValueError(f"{where}: {len(row)} cells, expected {tasks + 1}")
    if row[0] != str(stage):
        raise ValueError(f"{where}: stage {row[0]!r}, expected {stage}")
    try:
        scores = [float(cell) if cell.strip() else math.nan for cell in row[1:]]
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if any(
        cell.strip() and not abs(score) <= _LARGEST
        for cell, score in zip(row[1:], scores, strict=True)
    ):
        raise ValueError(
            f"{where}: a score must be finite and at most {_LARGEST:,.0f}; missing ones are empty"
        )
    return scores
