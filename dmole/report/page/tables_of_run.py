"""Readers of ``allocation.csv`` and ``curriculum.csv``, of this and of earlier versions."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dmole.messages import excerpt
from dmole.storage.reading import read_text

_NEW_NAMES = {"task": "expert", "module": "modality", "layer": "unit", "expert": "selected"}
"""Columns of format 1 of a run folder, which begins with ``stage,task``."""

_LARGEST = 1e300


@dataclass(frozen=True)
class AllocatedUnit:
    """One unit of the model as the expert of one stage sees it.

    Args:
        stage: The stage that places the expert.
        expert: The expert.
        modality: Vision, projector or language.
        unit: Name of the block, or other unit, such as ``language.3``.
        score: Proxy score; NaN if the unit was not scored.
        rank: Rank of the expert on the unit; 0 if it has none there.
    """

    stage: int
    expert: str
    modality: str
    unit: str
    score: float
    rank: int


@dataclass(frozen=True)
class ModalityFactor:
    """Difficulty, budget and factor of a modality in one stage.

    Args:
        stage: The stage.
        expert: The expert in training.
        modality: Vision, projector or language.
        difficulty: Share of the modality in the proxy score, 0 to 1; NaN if it is not known.
        budget: Units that the modality may hold; NaN if it is not known.
        factor: Factor on its learning rate.
        step: Optimizer step of the record; None for the start of the stage.
    """

    stage: int
    expert: str
    modality: str
    difficulty: float
    budget: float
    factor: float
    step: int | None


def read_allocation(path: Path) -> list[AllocatedUnit]:
    """Return the rows of ``allocation.csv``.

    Raises:
        ValueError: If the table is broken; names the file and the line.
    """
    return [
        AllocatedUnit(
            stage=int(_number(where, row, "stage")),
            expert=row["expert"],
            modality=row["modality"],
            unit=row["unit"],
            score=_number(where, row, "score", empty=math.nan),
            rank=int(_number(where, row, "rank", empty=0.0)),
        )
        for where, row in _rows(path, ("stage", "expert", "modality", "unit", "score", "rank"))
    ]


def read_curriculum(path: Path) -> list[ModalityFactor]:
    """Return the rows of ``curriculum.csv``.

    Raises:
        ValueError: If the table is broken; names the file and the line.
    """
    return [
        ModalityFactor(
            stage=int(_number(where, row, "stage")),
            expert=row["expert"],
            modality=row["modality"],
            difficulty=_number(where, row, "difficulty", empty=math.nan),
            budget=_number(where, row, "budget", empty=math.nan),
            factor=_number(where, row, "factor"),
            step=int(_number(where, row, "step")) if row.get("step") else None,
        )
        for where, row in _rows(path, ("stage", "expert", "modality", "difficulty", "factor"))
    ]


def _rows(path: Path, needed: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield each row by the names of its columns, and its place."""
    try:
        rows = list(csv.reader(io.StringIO(read_text(path)), strict=True))
    except csv.Error as error:
        raise ValueError(f"{path}: broken table: {error}") from error
    header = rows[0] if rows else []
    if header[1:2] == ["task"]:
        header = [_NEW_NAMES.get(name, name) for name in header]
    if missing := [name for name in needed if name not in header]:
        raise ValueError(f"{path}, line 1: no column {missing[0]}")
    for line, row in enumerate(rows[1:], start=2):
        if len(row) != len(header):
            raise ValueError(f"{path}, line {line}: {len(row)} cells, expected {len(header)}")
        yield f"{path}, line {line}", dict(zip(header, row, strict=True))


def _number(where: str, row: dict[str, str], name: str, empty: float | None = None) -> float:
    text = row.get(name, "")
    if not text and empty is not None:
        return empty
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not abs(value) <= _LARGEST:
        raise ValueError(f"{where}: {name} must be a finite number, got {excerpt(text)}")
    return value
