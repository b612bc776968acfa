"""Joins the predictions of a run of an earlier version, which has a file for each stage and task.

The files of the earlier layout stay where they are; the run no longer needs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmole.callbacks.evaluation_results import predictions
from dmole.run.run_files import RunFile
from dmole.storage.predictions import FOLDER, predictions_file, read_stage

if TYPE_CHECKING:
    from dmole.callbacks import EvaluationMatrix
    from dmole.run.state import SequenceState


def join_predictions(state: SequenceState, matrix: EvaluationMatrix) -> None:
    """Write the file of each evaluated stage whose predictions are in files by task.

    A stage is left out if one of its files is missing or changed; its evaluation is repeated then,
    as that of any stage without predictions.

    Args:
        state: State of a resumed run.
        matrix: Knows which tasks were evaluated at each stage.
    """
    if not state.is_global_zero:
        return
    for stage in matrix.evaluated:
        folder = f"{FOLDER}/stage_{stage}"
        if (
            state.files.has_written(predictions_file(stage))
            or not (state.run_dir / folder).is_dir()
        ):
            continue
        tasks = matrix.evaluated_tasks(state, stage)
        files = [RunFile(f"{folder}/{task}.jsonl") for task in tasks]
        state.files.adopt(state.run_dir, files)  # of a run without digests
        if not state.files.broken(state.run_dir, files, thorough=True):
            lines = read_stage(state.run_dir, stage)
            state.put(predictions(stage, {task: lines[task] for task in tasks}))
        state.files.forget(f"{folder}/")
