"""The answers of an evaluation in a run folder: one file of JSON lines for each stage.

Runs of earlier versions have a folder for each stage, with a file for each task. Both are read.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from dmole.storage.reading import read_text
from dmole.storage.values import parse_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

FOLDER = "predictions"
TASK = "task"
"""Key of the name of the task in a line."""

Lines = list[dict[str, Any]]


def predictions_file(stage: int) -> str:
    """Return the path of the predictions of a stage, below the run folder."""
    return f"{FOLDER}/stage_{stage}.jsonl"


def predicted_stages(run: Path) -> list[int]:
    """Return the stages of a run whose predictions are there, in order."""
    names = (path.name for path in (run / FOLDER).glob("stage_*"))
    found = (re.fullmatch(r"stage_(\d+)(\.jsonl)?", name) for name in names)
    return sorted({int(match[1]) for match in found if match})


def read_stage(run: Path, stage: int) -> dict[str, Lines]:
    """Return the predictions of a stage by task, without the key of the task.

    Args:
        run: The run folder.
        stage: Index of the stage; 0 is before training.

    Raises:
        ValueError: If a file is missing or a line is not an object with a task; names the file.
    """
    path = run / predictions_file(stage)
    folder = run / FOLDER / f"stage_{stage}"
    if not path.exists() and folder.is_dir():
        files = sorted(folder.glob("*.jsonl"))
        return {file.stem: [line for _, line in _lines(file)] for file in files}
    tasks: dict[str, Lines] = {}
    for where, line in _lines(path):
        task = line.pop(TASK, None)
        if not isinstance(task, str):
            raise ValueError(f"{where}: expected an object with a {TASK!r}")
        tasks.setdefault(task, []).append(line)
    return tasks


def stage_lines(tasks: Mapping[str, Iterable[Mapping[str, Any]]]) -> Iterator[dict[str, Any]]:
    """Yield the lines of a stage's file.

    Args:
        tasks: Predictions by task, in the order of the columns of the matrix.
    """
    for task, lines in tasks.items():
        for line in lines:
            yield {TASK: task, **line}


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the objects of a file of JSON lines, each with its place."""
    text = read_text(path, limit=None)
    for number, line in enumerate(filter(None, text.split("\n")), start=1):
        where = f"{path}: line {number}"
        try:
            content = parse_json(line)
        except ValueError as error:
            raise ValueError(f"{where} is not JSON: {error}") from error
        if not isinstance(content, dict):
            raise ValueError(f"{where} is not an object")
        yield where, content
