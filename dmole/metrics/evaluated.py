"""The tasks that are evaluated after each stage, and the figures that need the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from dmole.metrics.matrix import Scope
from dmole.metrics.summary import FIGURES, summarize

Evaluated = Literal["all", "seen", "last"]
"""Which tasks are evaluated: ``all`` after each stage and before training, ``seen`` those learned
so far, or all after the ``last`` stage alone."""

KEY = "evaluated"
"""Part of ``metrics.json`` that says that some cells of the matrix were left out, and which."""

PHRASES = {
    "all": "all tasks after every stage, but fewer before the value was changed",
    "seen": "after each stage the tasks learned so far",
    "last": "all tasks after the last stage alone",
}

_EARLIER = "evaluate: last leaves out the scores after earlier stages"
_CHANGED = "some cells were left empty before evaluate was changed"
_UNSEEN = "evaluate: seen leaves out the scores of tasks before they are learned"
_AVERAGE = f"{_UNSEEN}; avg_scope: seen of EvaluationMatrix takes the stages that have seen a task"
_LATER = "not all tasks are learned yet, and evaluate: seen leaves the others out"
_REASONS = {"AVG": _AVERAGE, "Transfer": _UNSEEN, "unseen_accepted": _UNSEEN}


def check_evaluated(evaluated: str) -> None:
    """Raise `ValueError` unless a value is one of `Evaluated`."""
    if evaluated not in get_args(Evaluated):
        raise ValueError(f"trainer.evaluate must be 'all', 'seen' or 'last', got {evaluated!r}")


def evaluated_tasks(
    evaluated: Evaluated, stage: int, learned: Sequence[Sequence[str]], tested: Sequence[str]
) -> list[str]:
    """Return the tasks to evaluate after a stage, in order.

    After the last stage these are all tasks, under each value. Tasks that are only scored and never
    learned are evaluated under ``seen`` before training and after the last stage, since their
    figure compares these two.

    Args:
        evaluated: Which tasks are evaluated.
        stage: Index of the stage; 0 is before training.
        learned: Tasks of each stage.
        tested: Tasks with test samples.

    Example:
        >>> tested, stages = ["a", "b", "scored"], [["a"], ["b"]]
        >>> [evaluated_tasks("seen", stage, stages, tested) for stage in range(3)]
        [['scored'], ['a'], ['a', 'b', 'scored']]
        >>> [evaluated_tasks("last", stage, stages, tested) for stage in range(3)]
        [[], [], ['a', 'b', 'scored']]
    """
    if evaluated == "all" or stage == len(learned):
        return list(tested)
    if evaluated == "last":
        return []
    seen = {task for tasks in learned[:stage] for task in tasks}
    later = {task for tasks in learned for task in tasks}
    return [task for task in tested if task in seen or (not stage and task not in later)]


def evaluated_facts(
    evaluated: Evaluated,
    content: Mapping[str, Any],
    matrix: npt.NDArray[np.float64],
    left_out: npt.NDArray[np.bool_],
    scope: Scope,
    task_of_stage: Sequence[Sequence[int]],
    task_names: Sequence[str],
) -> dict[str, Any]:
    """Return what ``metrics.json`` says of a run that does not, or did not, evaluate all tasks.

    Args:
        evaluated: Which tasks are evaluated.
        content: Figures of ``metrics.json``, rates and retention included.
        matrix: Scores of the tasks to learn, ``(stages + 1, tasks)``.
        left_out: Cells that are not to be evaluated, of the same shape; others may be empty too,
            as where an expert trained further before a run was evaluated again.
        scope: Scope of AVG.
        task_of_stage: Columns that each stage learns.
        task_names: One name per column.

    Returns:
        ``tasks``: the value. ``learned``: the tasks of each stage. ``missing``: why a figure is
        null that would have a value if all tasks were evaluated.
    """
    filled = np.where(np.isnan(matrix) & left_out, 0.0, matrix)
    full = summarize(filled, task_names, scope, task_of_stage)
    missing = [name for name in FIGURES if content[name] is None and full[name] is not None]
    rates = content.get("routing") or {}
    if rates.get("unseen_accepted", 0) is None and len(task_names) > 1:
        missing.append("unseen_accepted")
    if (content.get("retention") or {}).get("change", 0) is None:
        missing.append("retention")
    return {
        "tasks": evaluated,
        "learned": [[task_names[column] for column in columns] for columns in task_of_stage],
        "missing": {name: _reason(evaluated, name) for name in missing},
    }


def _reason(evaluated: Evaluated, name: str) -> str:
    if evaluated == "seen":
        return _REASONS.get(name, _LATER)
    return _EARLIER if evaluated == "last" else _CHANGED


def stated_tasks(metrics: Mapping[str, Any]) -> Evaluated:
    """Return which tasks a run has evaluated, from its ``metrics.json``."""
    tasks: Evaluated = (metrics.get(KEY) or {}).get("tasks", "all")
    return tasks


def stated_missing(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Return why figures of a run are missing, by name, from its ``metrics.json``."""
    return dict((metrics.get(KEY) or {}).get("missing") or {})


def statement(metrics: Mapping[str, Any]) -> str:
    """Return a sentence on the tasks that a run has evaluated; empty if these are all.

    Example:
        >>> statement({"evaluated": {"tasks": "last", "missing": {"AVG": "...", "BWT": "..."}}})
        'Evaluated: all tasks after the last stage alone (evaluate: last). Missing: AVG, BWT.'
    """
    tasks, missing = stated_tasks(metrics), stated_missing(metrics)
    if tasks == "all" and not missing:
        return ""
    text = f"Evaluated: {PHRASES[tasks]} (evaluate: {tasks})."
    return f"{text} Missing: {', '.join(missing)}." if missing else text


def reasons(metrics: Mapping[str, Any]) -> list[str]:
    """Return a line for each reason why figures of a run are missing.

    Example:
        >>> reasons({"evaluated": {"missing": {"AVG": "no scores", "BWT": "no scores"}}})
        ['AVG, BWT: no scores']
    """
    names: dict[str, list[str]] = {}
    for name, reason in stated_missing(metrics).items():
        names.setdefault(reason, []).append(name)
    return [f"{', '.join(each)}: {reason}" for reason, each in names.items()]
