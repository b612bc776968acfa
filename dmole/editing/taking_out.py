"""Takes experts out of a run, with their entries of the router."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dmole.editing.draft import Draft
from dmole.editing.source import OpenRun
from dmole.routing.entries import take_out


def remove_experts(source: OpenRun, names: Sequence[str]) -> Draft:
    """Return a run without some of its experts.

    Everything else stays, bit for bit: the other experts, the statistics that the router shares,
    losses and thresholds. The tasks of a removed expert become tasks that are only scored.

    Args:
        source: The run.
        names: Experts to take out.

    Raises:
        ValueError: If the run does not have an expert, all tasks share it, the experts answer only
            together, one that was updated stays without its newest version, or none or a
            disabled one would be left.
    """
    source.check_separable()
    for name in names:
        source.check_has(name)
    source.check_newest(names)
    left = [name for name in source.names if name not in names]
    if not set(left) - {source.router.common, *(stage.common for stage in source.stages)}:
        raise ValueError(
            f"without {', '.join(names)} the run {source.run} has no expert of its own left: the "
            "base model alone answers as well"
        )
    source.check_enabled(left)
    draft = Draft.of(source)
    draft.experts = {name: draft.experts[name] for name in left}
    take_out(draft.router, *names)
    gone = {task for stage in source.stages if stage.expert in names for task in stage.tasks}
    draft.set_stages([stage for stage in source.stages if stage.expert not in names])
    gone -= {task for stage in draft.stages for task in stage.tasks}
    tasks = [_only_scored(t) if t["name"] in gone else t for t in draft.tasks]
    draft.set_tasks([task for task in tasks if task.get("test")])  # an update may have none
    for task in gone & draft.data.keys():
        draft.data[task] = {k: v for k, v in draft.data[task].items() if k != "train"}
    draft.edit = {"verb": "remove", "experts": list(names), "tasks": sorted(gone)}
    return draft


def _only_scored(task: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a task that nothing has learned any more."""
    return {**task, "train": None, "eval_only": True, "update": False}
