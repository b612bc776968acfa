"""What a tracker is told of a run: its name at the start, results and files at the end."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dmole.callbacks.evaluation_matrix import EvaluationMatrix
from dmole.run.hparams import final_figures
from dmole.storage.files import read_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt
    from typing_extensions import Self

    from dmole.run.hparams import Value
    from dmole.run.state import SequenceState

Cell = str | float | None

PROJECT = "dmole"
"""Project of the runs, unless a variable of the tracker's environment names another."""

FILES = (
    *("config.yaml", "model.json", "metrics.json", "timing.json"),
    *("evaluation_matrix.csv", "oracle_matrix.csv", "allocation.csv", "curriculum.csv"),
    *("routing.csv", "replay.csv", "segments.csv"),
)
"""Files of a run folder that trackers keep, besides figures: no weights and no data.

``report.html`` is none of them: it shows questions, answers and images of test samples.
"""

LARGEST = 32 * 2**20
"""Bytes of a file that trackers keep, at most."""


@dataclass(frozen=True)
class TrackedRun:
    """Identity of a run for a tracker.

    Args:
        name: Name and version of the run folder.
        id: Hexadecimal identifier, the same after a resume.
        settings: Settings by which runs are compared.
    """

    name: str
    id: str
    settings: dict[str, Value]

    @classmethod
    def of(cls, state: SequenceState, settings: dict[str, Value]) -> Self:
        """Return the identity of a run, whose checkpoints know its ``run_id``."""
        run = state.run_dir
        digest = hashlib.sha256(state.run_id.encode("utf-8", "surrogatepass")).hexdigest()
        return cls(f"{run.parent.name}/{run.name}", digest[:16], settings)


@dataclass(frozen=True)
class Table:
    """A table of results.

    Args:
        columns: Headers.
        rows: Cells; None is missing.
    """

    columns: list[str]
    rows: list[list[Cell]]


@dataclass(frozen=True)
class RunResults:
    """Results of a finished run.

    Args:
        folder: The run folder.
        step: Index of the last stage.
        figures: Final figures by tag, in percent.
        tables: Evaluation matrix, oracle matrix and figures of each task.
        pictures: Figures as PNG.
        files: All files to keep, figures included.
    """

    folder: Path
    step: int
    figures: dict[str, float]
    tables: dict[str, Table]
    pictures: list[Path]
    files: list[Path]


def results_of(state: SequenceState) -> RunResults:
    """Return the results of a run whose files are all written.

    Raises:
        ValueError: If ``metrics.json`` cannot be read.
    """
    folder, table = state.run_dir, state.callback_of(EvaluationMatrix)
    metrics = read_json(folder / "metrics.json")
    names, rows = list(state.data.column_names), table.evaluated[-1] + 1
    pictures = sorted(folder.glob("figures/*.png"))
    vectors = sorted(folder.glob("figures/*.svg"))
    return RunResults(
        folder,
        table.evaluated[-1],
        final_figures(metrics),
        {
            "evaluation_matrix": _matrix(table.matrix[:rows], names),
            "oracle_matrix": _matrix(table.oracle[:rows], names),
            "metrics": _per_task(metrics["per_task"]),
        },
        _kept(pictures),
        _kept([*(folder / name for name in FILES), *pictures, *vectors]),
    )


def _kept(files: Sequence[Path]) -> list[Path]:
    """Return the regular files of those that are not too large; links are left out."""
    found = (path for path in files if path.is_file() and not path.is_symlink())
    return [path for path in found if path.stat().st_size <= LARGEST]


def _matrix(matrix: npt.NDArray[np.float64], names: list[str]) -> Table:
    rows: list[list[Cell]] = [
        [float(stage), *(None if math.isnan(score) else score for score in row)]
        for stage, row in enumerate(matrix.tolist())
    ]
    return Table(["stage", *names], rows)


def _per_task(figures: dict[str, dict[str, float | None]]) -> Table:
    """Return the figures of each task, one row for a task."""
    columns = list(dict.fromkeys(name for row in figures.values() for name in row))
    rows: list[list[Cell]] = [
        [task, *(row.get(name) for name in columns)] for task, row in figures.items()
    ]
    return Table(["task", *columns], rows)
