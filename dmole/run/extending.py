"""Decides whether a run with more tasks extends a finished run, or what keeps it from doing so."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dmole.run.state import SequenceState


@dataclass(frozen=True)
class RunPlan:
    """The stages and tasks of a run.

    Args:
        stages: Name, expert and tasks of each stage, in order.
        tasks: All tasks, in order; those with test samples are the columns of the matrix.
        scored: Those of them that are never trained on.
    """

    stages: tuple[tuple[str, ...], ...]
    tasks: tuple[str, ...]
    scored: frozenset[str] = frozenset()

    @classmethod
    def of(cls, state: SequenceState) -> RunPlan:
        """Return the plan of a sequence that has begun."""
        tasks = tuple(state.data.task_names)
        learned = set(state.data.training_task_names)
        stages = tuple((stage.name, stage.expert, *stage.tasks) for stage in state.plan)
        return cls(stages, tasks, frozenset(tasks) - learned)

    @classmethod
    def saved_in(cls, content: Mapping[str, Any]) -> RunPlan | None:
        """Return the plan of a checkpoint; None if it has none that can be read."""
        try:
            fingerprints, settings = content["fingerprints"], content["settings"]
            stages = tuple(tuple(map(str, stage)) for stage in fingerprints["order of stages"])
            tasks = tuple(map(str, fingerprints["order of tasks"]))
            scored = {t for t in tasks if settings.get(f"eval_only of task {t}") == "True"}
            return cls(stages, tasks, frozenset(scored))
        except (KeyError, TypeError, AttributeError):
            return None

    @property
    def learned(self) -> list[str]:
        """The tasks that are trained on, in order."""
        return [task for task in self.tasks if task not in self.scored]

    @property
    def evaluated_only(self) -> list[str]:
        """The tasks that are never trained on, in order."""
        return [task for task in self.tasks if task in self.scored]


@dataclass(frozen=True)
class Parent:
    """The finished run that a run extends.

    Args:
        run: Its folder, ``<name>/version_<N>``.
        digest: SHA-256 of its ``digests.json``, which holds those of its other files.
        stages: Number of its stages.
        tasks: Its tasks.
    """

    run: str
    digest: str
    stages: int
    tasks: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a checkpoint."""
        return {**asdict(self), "tasks": list(self.tasks)}

    def for_metrics(self) -> dict[str, Any]:
        """Return what ``metrics.json`` says of the parent."""
        return {"run": self.run, "digest": self.digest, "stage": self.stages}

    @classmethod
    def saved_in(cls, content: Mapping[str, Any]) -> Parent | None:
        """Return the parent of the run of a checkpoint; None if it has none."""
        parent = content.get("parent")
        if parent is None:
            return None
        tasks = tuple(str(task) for task in parent["tasks"])
        return cls(str(parent["run"]), str(parent["digest"]), int(parent["stages"]), tasks)


@dataclass(frozen=True)
class Inheritance:
    """What a run takes over from its parent, the finished run that it extends.

    Args:
        stages: Number of stages of the parent; 0 for a run without a parent.
        tasks: Tasks of the parent. Their files may be gone.
        fingerprints: Digests of their samples by task and split, for files that are gone.
    """

    stages: int = 0
    tasks: tuple[str, ...] = ()
    fingerprints: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def inheritance(content: Mapping[str, Any], now: RunPlan, file: Path) -> Inheritance:
    """Return what a run takes over that continues from a checkpoint.

    Args:
        content: The checkpoint: of a finished run that this one extends, or of this run.
        now: The plan of this run.
        file: The checkpoint, for messages.

    Raises:
        ValueError: See :func:`new_tasks`.
    """
    saved, parent = RunPlan.saved_in(content), Parent.saved_in(content)
    if saved is None:
        return Inheritance()
    digests = {
        task: dict(content["fingerprints"].get(f"data of {task}") or {}) for task in saved.tasks
    }
    if new_tasks(saved, now, file):
        return Inheritance(len(saved.stages), saved.tasks, digests)
    return Inheritance() if parent is None else Inheritance(parent.stages, parent.tasks, digests)


def new_tasks(saved: RunPlan, now: RunPlan, file: Path) -> tuple[str, ...]:
    """Return the tasks that a run learns after those of a checkpoint.

    A run extends another one if the tasks of that one, all of them and in their order, are
    followed by others in its config; the same holds for the tasks that are only scored.

    Args:
        saved: The plan of the checkpoint.
        now: The plan of this run.
        file: The checkpoint, for messages.

    Returns:
        The new tasks; none if both have the same tasks, so that the run is resumed.

    Raises:
        ValueError: If a task of the checkpoint is missing, renamed, at another place or no longer
            learned, or the stream does not add a stage after the old ones; names the task.
    """
    if saved.tasks == now.tasks:
        return ()
    only = _moved(saved.evaluated_only, now.evaluated_only, now.learned, "learned")
    message = _moved(saved.learned, now.learned, now.scored, "only evaluated") or only
    if message:
        raise ValueError(f"{file} was made with another order of stages: {message}")
    if saved.learned == now.learned:
        added = ", ".join(now.evaluated_only[len(saved.evaluated_only) :])
        raise ValueError(
            f"{file} was made without {added}, which is only evaluated: "
            "a run is extended by a task to learn, and evaluated on others by dmole evaluate"
        )
    past = len(saved.stages)
    if now.stages[:past] != saved.stages or len(now.stages) <= past:
        raise ValueError(
            f"{file} cannot be extended: its stream does not learn a new task in a stage of its "
            "own; start a new run with all tasks"
        )
    return tuple(now.learned[len(saved.learned) :])


def _moved(saved: Sequence[str], now: Sequence[str], others: Collection[str], role: str) -> str:
    """Return what became of the first task that is not where it was; empty if all are there.

    Args:
        saved: Tasks of one kind in the checkpoint.
        now: Tasks of this kind now.
        others: Tasks of the other kind now.
        role: What those are.
    """
    for place, name in enumerate(saved):
        if place < len(now) and now[place] == name:
            continue
        if name in others:
            return f"task {name!r} has become one that is {role}"
        if name in now:
            return (
                f"task {name!r} was number {place + 1} and is number {now.index(name) + 1} now; "
                "old tasks keep their order and precede new ones"
            )
        there = f", where {now[place]!r} is now" if place < len(now) else ""
        return (
            f"task {name!r} is missing as number {place + 1}{there}; "
            "old tasks stay in the config under their names, though their files may be gone"
        )
    return ""


def unfinished_phase(
    saved: RunPlan, done: Collection[tuple[int, str]], phases: Sequence[str]
) -> str:
    """Return the first phase of a plan that is not done; empty if all are.

    Args:
        saved: The plan.
        done: Finished phases, as pairs of stage and phase.
        phases: Phases of a stage, in order; the last one is also done before the first stage.
    """
    if (0, phases[-1]) not in done:
        return "the evaluation before training"
    for index, (name, *_) in enumerate(saved.stages, start=1):
        for phase in phases:
            if (index, phase) not in done:
                return f"phase {phase} of stage {index}, {name}"
    return ""
