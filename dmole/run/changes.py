"""Changed settings of a resumed run: which of them still take effect, and from where."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dmole.models.identity import NUMERICS, changed_parts
from dmole.run.settings import contrast

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from dmole.models.identity import Parts
    from dmole.run.state import SequenceState

_PLACED = re.compile(
    r"allocator setting|model setting '(alpha|projector_experts)'"
    r"|router setting 'mixing\.(fusion|train_routers)'"
)
"""Read when an expert is placed."""
_STARTED = re.compile(r"model setting 'seed'|repeat of task")
"""Read at the start of a stage."""
_FITTED = re.compile(
    r"router setting '(.*\.)?(components|heldout_fraction|patience|max_epochs|bias_init|seed"
    r"|hidden|cosine_epochs|batch_size|learning_rate|final_learning_rate|min_steps"
    r"|exemplars|passes|step_samples)'"
    r"|RouterFitting setting"
)
"""Read when the router of an expert is fitted, after training."""
_FIXED = re.compile(
    r"router setting '(.*\.)?(reconstructor|standardize|std_floor|output|common|shared|question"
    r"|projection)'"
    r"|AdversarialTask setting '(seed|targets)'|ReplayImportance setting '(hidden|seed)'"
    r"|allocator setting 'initializer(\.(directions|fix_down))?'"
    r"|ElasticWeights setting 'online'|KeyElements setting 'counting'"
    r"|Input(Preconditioning|Projection) setting 'components'"
)
"""Part of what the run has learned so far."""
_ANSWERED = re.compile(
    r"model setting '(beams|generation)'|EvaluationMatrix setting|router setting"
    r"|setting 'trainer\.evaluate'"
    r"|(format|prompt|prompt_suffix|test_image_root|max_new_tokens|side_files) of task"
)
"""Read in evaluation; some of them in training too."""
_REGENERATED = re.compile(
    r"model setting '(beams|generation)'|setting 'precision'"
    r"|(format|prompt|prompt_suffix|test_image_root|max_new_tokens|side_files) of task"
)
"""Change the answer of the same experts, so that no earlier answer counts."""
PART = "base model's "
"""Beginning of the names of parts of the base model, which change embeddings and answers."""
Records = list[dict[str, Any]]
"""Changed settings, see :func:`accepted_changes`."""
_CLASS = re.compile(r"(\w+) setting '")
_PARTS = ("model", "allocator", "router", "Curriculum", "RouterFitting", "EvaluationMatrix")


@dataclass(frozen=True)
class Remaining:
    """What a run still has to do.

    Args:
        train: Stages that will be trained or are in training, in order.
        start: Those of them that have not started.
        place: Those of them that place an expert.
        fit: Stages whose router will be fitted.
        evaluate: Stages that will be evaluated, 0 included.
    """

    train: tuple[int, ...]
    start: tuple[int, ...]
    place: tuple[int, ...]
    fit: tuple[int, ...]
    evaluate: tuple[int, ...]

    @classmethod
    def of(
        cls,
        state: SequenceState,
        done: Collection[tuple[int, str]],
        placed: Collection[str],
        training: int,
    ) -> Remaining:
        """Return what remains.

        Args:
            state: Has the plan.
            done: Finished phases.
            placed: Experts of the checkpoint.
            training: Stage whose training was interrupted; 0 for none.
        """

        def open_stages(phase: str) -> tuple[int, ...]:
            return tuple(s.index for s in state.plan if (s.index, phase) not in done)

        train = open_stages("train")
        start = tuple(index for index in train if index != training)
        names = {stage.index: set(stage.experts) - set(placed) for stage in state.plan}
        evaluate = (*(() if (0, "evaluate") in done else (0,)), *open_stages("evaluate"))
        place = tuple(index for index in start if names[index])
        return cls(train, start, place, open_stages("router"), evaluate)


def first_effect(
    name: str, old: str | None, new: str | None, remaining: Remaining, state: SequenceState
) -> int | None:
    """Return the first stage that a changed setting affects, None if it affects nothing any more.

    Args:
        name: Name of the setting, see :func:`~dmole.run.settings.run_settings`.
        old: Its value in the checkpoint; None if the part that has it was not there.
        new: Its value now; None if the part is gone.
        remaining: What the run still has to do.
        state: Has the plan.
    """
    kind = _CLASS.match(name)
    regularizer = kind is not None and kind[1] not in _PARTS
    if _FIXED.match(name) or (regularizer and None in (old, new)):
        stages: tuple[int, ...] = ()  # the state of a term that was not there is unknown
    elif _PLACED.match(name):
        stages = remaining.place
    elif _STARTED.match(name):
        stages = _of_task(name, remaining.start, state)
    elif _FITTED.match(name):
        stages = remaining.fit
    elif _ANSWERED.match(name) or "setting 'precision'" in name:
        stages = tuple(sorted({*remaining.evaluate, *remaining.train}))
    else:
        stages = _of_task(name, remaining.train, state)
    return stages[0] if stages else None


def needs_new_answers(state: SequenceState) -> bool:
    """Return whether a setting changed at this resume that changes answers of the same experts."""
    names = {*state.saved_settings, *state.settings} if state.saved_settings else set()
    saved, now = state.saved_settings, state.settings
    return any(_REGENERATED.match(n) and saved.get(n) != now.get(n) for n in names)


def later_change(state: SequenceState, stage: int) -> dict[str, Any] | None:
    """Return the record of a change after a stage that changes its answers or their routing.

    Args:
        state: Has the changes of all resumes, those of a parent included.
        stage: Index of the stage.
    """
    later = (record for record in state.changes if record["from_stage"] > stage)
    return next((record for record in later if _changes_row(record["setting"])), None)


def leaves_cells_empty(state: SequenceState) -> bool:
    """Return whether ``trainer.evaluate`` leaves cells empty, or did so before a resume."""
    changed = (record["setting"] == "setting 'trainer.evaluate'" for record in state.changes)
    return state.evaluates != "all" or any(changed)


def part_changes(saved: Any, current: Parts, remaining: Remaining, stages: int) -> Records:
    """Return a record of each part of the base model that changed, such as its tokenizer.

    Args:
        saved: Parts that the checkpoint recorded.
        current: Parts of now.
        remaining: What the run still has to do; it is done with the changed parts.
        stages: Number of stages.
    """
    first = min((*remaining.evaluate, *remaining.train), default=stages + 1)
    return [
        {
            "setting": f"{PART}{name}",
            "before": saved[name]["sha256"],
            "now": current[name]["sha256"],
            "from_stage": first,
        }
        for name in changed_parts(saved, current)
        if name != NUMERICS
    ]


def _changes_row(name: str) -> bool:
    if name.startswith(PART):
        return True
    routes = name.startswith("router setting") and not _FITTED.match(name)
    return routes or _REGENERATED.match(name) is not None


def changed_settings(saved: Mapping[str, str], current: Mapping[str, str]) -> list[str]:
    """Return the names of settings that differ; arguments of a part before those of its parts.

    Example:
        >>> names = ("router setting 'bank.std_floor'", "router setting 'std_floor'")
        >>> changed_settings(dict.fromkeys(names, "0.001"), dict.fromkeys(names, "1.0"))[0]
        "router setting 'std_floor'"
    """
    names = (n for n in saved.keys() | current.keys() if saved.get(n) != current.get(n))
    return sorted(names, key=lambda name: ("." in name.partition("'")[2], name))


def accepted_changes(
    saved: Mapping[str, str],
    current: Mapping[str, str],
    remaining: Remaining,
    state: SequenceState,
    step: int | None,
) -> Records:
    """Return a record of each changed setting.

    Args:
        saved: Settings of the checkpoint.
        current: Settings of this run.
        remaining: What the run still has to do.
        state: Has the plan.
        step: Optimizer step at which training resumes; None between stages.

    Raises:
        ValueError: If a change cannot take effect any more; names it.
    """
    records = []
    for name in changed_settings(saved, current):
        old, new = saved.get(name), current.get(name)
        first = first_effect(name, old, new, remaining, state)
        if first is None:
            raise ValueError(
                f"the run was made with another {name}, which can no longer take effect: "
                f"keep it ({contrast(old, new)})"
            )
        record = {"setting": name, "before": old, "now": new, "from_stage": first}
        within = step is not None and remaining.train[:1] == (first,)
        records.append({**record, "from_step": step} if within else record)
    return records


def _of_task(name: str, stages: tuple[int, ...], state: SequenceState) -> tuple[int, ...]:
    """Return the stages that a setting of a task concerns; all for other settings."""
    _, found, task = name.partition(" of task ")
    if not found:
        return stages
    tasks = {stage.index: stage.tasks for stage in state.plan}
    return tuple(index for index in stages if task in tasks[index])
