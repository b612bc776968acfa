"""Reads the counts of ``routing.csv``: how many samples of a task used which experts."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from dmole.messages import excerpt
from dmole.storage.reading import read_text

FILE = "routing.csv"
_COLUMNS = ("stage", "true_task", "gate_set", "count")


def read_test_counts(path: Path) -> Iterator[tuple[int, str, str, int]]:
    """Yield the counts of test samples in ``routing.csv``.

    Args:
        path: The file.

    Returns:
        Stage, true task, gate set (names joined by ``+``, or ``base``) and number of samples.

    Raises:
        ValueError: If the table is broken; names the file and, if possible, the line.
    """
    try:
        rows = list(csv.reader(io.StringIO(read_text(path)), strict=True))
    except csv.Error as error:
        raise ValueError(f"{path}: broken table: {error}") from error
    header = rows[0] if rows else []
    if tuple(header) not in (_COLUMNS, (*_COLUMNS, "phase")):
        raise ValueError(f"{path}, line 1: expected the header {','.join(_COLUMNS)}[,phase]")
    for line, row in enumerate(rows[1:], start=2):
        numbers = row[:1] + row[3:4]
        if len(row) != len(header) or not all(n.isdecimal() and len(n) < 16 for n in numbers):
            form = ",".join(header)
            raise ValueError(f"{path}, line {line}: expected {form}, got {excerpt(row)}")
        if row[4:] != ["train"]:
            yield int(row[0]), row[1], row[2], int(row[3])
