"""The answers of a run to its test samples after every stage, and which of them are known to hold.

Experts are frozen after the stage that trains them last, and decoding is deterministic. An answer
of any stage whose experts were final then is therefore the answer of these experts for good.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dmole.storage.case_images import Case, chosen
from dmole.storage.predictions import Lines

BASE = "base"
"""Gate set of the base model in a file of predictions."""

RIGHT = 50.0
"""Score in percent from which an answer counts as right."""

CASES = 24
"""Samples of a task whose answers are followed over the stages, if no image was kept."""

CONFUSED = 4
"""Confused samples that are followed of each task and expert."""

Known = dict[frozenset[str], float]
"""Scores of a sample's answers in percent by gate set."""


@dataclass(frozen=True)
class StageAnswer:
    """The answer to a sample after one stage.

    Args:
        stage: Index of the stage; 0 is before training.
        text: The answer.
        score: Its score in percent; NaN if there is none.
        gate_set: Experts that gave it, best first, joined by ``+``, or ``base``.
    """

    stage: int
    text: str
    score: float
    gate_set: str

    @property
    def right(self) -> bool:
        """Whether the answer counts as right."""
        return self.score >= RIGHT

    @property
    def experts(self) -> tuple[str, ...]:
        """The experts that gave it, best first."""
        return experts_of(self.gate_set)


@dataclass
class Story:
    """A test sample with its answers, in the order of the stages.

    Args:
        task: Its task.
        id: Its id.
        prompt: The question.
        references: Accepted answers.
        answers: One answer for each stage that was evaluated on it.
    """

    task: str
    id: str
    prompt: str
    references: tuple[str, ...]
    answers: list[StageAnswer] = field(default_factory=list)


@dataclass
class History:
    """What the predictions of a run say of its samples.

    Args:
        stages: Evaluated stages, in order.
        ids: Ids of the samples of each task at the last stage, in the order of the file.
        gate_sets: Their gate sets at the last stage, in the same order.
        stories: Followed samples by task and id.
        cases: Ids of the fixed samples of each task, in the order of the file.
        confused: Ids of samples that another task's expert or the base model answers at the last
            stage, by task and first expert; at most `CONFUSED`, those with images first.
        known: Scores by task and id.
        images: Images of samples by task and id.
        problems: One line for each damaged file beside the predictions.
    """

    stages: Sequence[int]
    ids: dict[str, list[str]] = field(default_factory=dict)
    gate_sets: dict[str, list[str]] = field(default_factory=dict)
    stories: dict[str, dict[str, Story]] = field(default_factory=dict)
    cases: dict[str, list[str]] = field(default_factory=dict)
    confused: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    known: dict[str, dict[str, Known]] = field(default_factory=dict)
    images: Mapping[str, Mapping[str, Case]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def experts_of(gate_set: str) -> tuple[str, ...]:
    """Return the experts that a gate set names; none for the base model.

    Example:
        >>> experts_of("paint+count"), experts_of("base")
        (('paint', 'count'), ())
    """
    return () if gate_set == BASE else tuple(gate_set.split("+"))


def read_history(
    stages: Iterator[tuple[int, Mapping[str, Lines]]],
    final_at: Mapping[str, int],
    owners: Mapping[str, Collection[str]],
    cases: Mapping[str, Mapping[str, Case]],
) -> History:
    """Return the history of the samples of the last stage.

    Args:
        stages: Index and predictions of each evaluated stage, the last one first.
        final_at: Stage that trains each expert last.
        owners: Experts of each learned task.
        cases: Samples whose images were kept, which are followed.

    Raises:
        ValueError: If a line of the predictions is not that of a sample.
    """
    history = History([], images=cases)
    indices: list[int] = []
    for stage, tasks in stages:
        for task, lines in tasks.items():
            if not indices:
                _begin(history, task, lines, owners.get(task, ()), set(cases.get(task, ())))
            _add(history, stage, task, lines, final_at)
        indices.append(stage)
    history.stages = sorted(indices)
    for stories in history.stories.values():
        for story in stories.values():
            story.answers.reverse()
    return history


def _begin(
    history: History, task: str, lines: Lines, own: Collection[str], cases: set[str]
) -> None:
    """Enter the samples of a task at the last stage."""
    ids = [_text(line, "id", task) for line in lines]
    gate_sets = [_text(line, "gate_set", task) for line in lines]
    history.ids[task], history.gate_sets[task] = ids, gate_sets
    history.known[task] = {name: {} for name in ids}
    fixed = [at for at, name in enumerate(ids) if name in cases] or chosen(task, ids, CASES)
    confused = _confused(ids, gate_sets, own, cases) if own else {}
    followed = {*fixed, *(at for places in confused.values() for at in places)}
    history.stories[task] = {ids[at]: _story(task, lines[at]) for at in followed}
    history.cases[task] = [ids[at] for at in fixed]
    history.confused[task] = {name: [ids[at] for at in places] for name, places in confused.items()}


def _confused(
    ids: Sequence[str], gate_sets: Sequence[str], own: Collection[str], cases: set[str]
) -> dict[str, list[int]]:
    """Return positions of samples whose first expert is not one of their task, by that expert."""
    found: dict[str, list[int]] = {}
    for at in sorted(range(len(ids)), key=lambda at: ids[at] not in cases):
        first = next(iter(experts_of(gate_sets[at])), BASE)
        if first not in own and len(found.setdefault(first, [])) < CONFUSED:
            found[first].append(at)
    return found


def _story(task: str, line: Mapping[str, Any]) -> Story:
    references = line.get("references")
    texts = references if isinstance(references, list) else []
    name, prompt = (_text(line, key, task) for key in ("id", "prompt"))
    return Story(task, name, prompt, tuple(map(str, texts)))


def _add(
    history: History, stage: int, task: str, lines: Lines, final_at: Mapping[str, int]
) -> None:
    """Enter the answers of a stage to the samples of a task."""
    known, stories = history.known.get(task, {}), history.stories.get(task, {})
    sets: dict[str, frozenset[str] | None] = {}  # None if an expert trained on
    for line in lines:
        name, gate_set = line.get("id"), line.get("gate_set")
        if name not in known or not isinstance(gate_set, str):
            continue
        if gate_set not in sets:
            names = experts_of(gate_set)
            final = all(final_at.get(expert, math.inf) <= stage for expert in names)
            sets[gate_set] = frozenset(names) if final else None
        score = _score(line.get("score"))
        experts = sets[gate_set]
        if experts is not None and not math.isnan(score):
            known[name].setdefault(experts, score)
        if name in stories:
            text = line.get("prediction")
            answer = "" if text is None else str(text)
            stories[name].answers.append(StageAnswer(stage, answer, score, gate_set))


def _score(value: Any) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and math.isfinite(value) else math.nan


def _text(line: Mapping[str, Any], key: str, task: str) -> str:
    value = line.get(key)
    if not isinstance(value, str):
        raise ValueError(f"predictions of task {task!r}: a line has no {key}")
    return value
