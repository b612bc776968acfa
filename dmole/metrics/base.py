"""What every task metric shares: checked items, scores in percent, and its state."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

Profile = Literal["published", "corrected"]
PROFILES: tuple[Profile, Profile] = ("published", "corrected")

Predictions = Sequence[str | None]
"""An answer per sample; None where there is none."""

References = Sequence[Sequence[str]]
"""Accepted answers: one non-empty list of strings per sample."""

Metadata = Sequence[Mapping[str, Any]]
"""What else a rule needs to know of each sample: the size of its image, its choices."""


@dataclass(frozen=True)
class ProfileScore:
    """What one profile of a metric gives: value and per-sample scores in percent."""

    value: float
    per_sample: list[float]


@dataclass(frozen=True)
class TaskScore:
    """The result of scoring one test set.

    Args:
        value: Score of the whole set in percent (CIDEr x 100 may exceed 100).
        per_sample: Score of each sample in percent, in the order of the predictions.
        details: Further facts of the set, by name: ``mean_iou`` in percent, the ``tokenizer``
            that found the words, how many answers were ``missing`` or ``unparsable``.
        profiles: The scores under each profile, for metrics that have two; `value` and
            `per_sample` repeat the chosen one.
        needs: Keys of the metadata that the metric reads where a sample has them.
    """

    value: float
    per_sample: list[float]
    details: dict[str, float | str] = field(default_factory=dict)
    profiles: dict[str, ProfileScore] = field(default_factory=dict)
    needs: tuple[str, ...] = ()

    def of_sample(self, place: int, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a file of predictions says of a sample beside its score.

        Args:
            place: Position of the sample.
            metadata: What is known of it.

        Returns:
            The score under each profile (``scores``) and the metadata the metric needs, so that
            the file can be scored again; nothing where there is none.
        """
        known = {key: metadata[key] for key in self.needs if key in metadata}
        scores = {name: each.per_sample[place] for name, each in self.profiles.items()}
        return ({"scores": scores} if scores else {}) | ({"metadata": known} if known else {})


@dataclass(frozen=True)
class ScoringItem:
    """One sample as a rule sees it.

    Args:
        prediction: The answer to judge; None if there is none.
        references: Accepted answers, at least one.
        metadata: What else is known of the sample.
    """

    prediction: str | None
    references: tuple[str, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The answer; empty if there is none."""
        return self.prediction or ""


def scoring_facts(scores: Mapping[str, TaskScore]) -> dict[str, Any]:
    """Return what metrics.json says of the last scoring, by task.

    Args:
        scores: The scores of each task.

    Returns:
        ``profiles``, the values under each profile, for tasks whose metric has two; and
        ``scoring``, the details such as the tokenizer, for tasks that have some.
    """
    profiles = {
        task: {name: each.value for name, each in score.profiles.items()}
        for task, score in scores.items()
        if score.profiles
    }
    details = {task: score.details for task, score in scores.items() if score.details}
    return ({"profiles": profiles} if profiles else {}) | ({"scoring": details} if details else {})


def make_items(
    predictions: Predictions, references: References, metadata: Metadata | None = None
) -> list[ScoringItem]:
    """Put together what belongs together.

    Raises:
        ValueError: If the lengths differ, nothing is to be scored, or a sample has no list of
            references; the message names the position.
    """
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions but {len(references)} reference lists")
    if metadata is not None and len(metadata) != len(predictions):
        raise ValueError(f"{len(predictions)} predictions but {len(metadata)} metadata entries")
    if not predictions:
        raise ValueError("nothing to score: no predictions")
    for position, accepted in enumerate(references):
        if isinstance(accepted, str):
            raise ValueError(f"references[{position}] is a string, not a list: {accepted!r}")
        if not accepted:
            raise ValueError(f"references[{position}] is empty")
    known = metadata if metadata is not None else [{}] * len(predictions)
    return [
        ScoringItem(text, tuple(accepted), extra)
        for text, accepted, extra in zip(predictions, references, known, strict=True)
    ]


def mean_score(
    per_sample: Sequence[float], details: dict[str, float | str] | None = None
) -> TaskScore:
    """Return the plain mean of scores in 0..1 as a `TaskScore` in percent.

    Args:
        per_sample: Scores of shape ``(samples,)`` in 0..1.
        details: Passed through.
    """
    percent = [100.0 * score for score in per_sample]
    return TaskScore(sum(percent) / len(percent), percent, details or {})


class TaskMetric(Metric):
    """A metric over predicted and accepted answers, in percent.

    A subclass implements `_score`. `update` keeps the texts themselves (as bytes, so that ranks
    can gather them), because CIDEr is a property of the whole set and not a mean of batches.

    Attributes:
        needs: Keys of the metadata that the rule reads where a sample has them.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    needs: tuple[str, ...] = ()

    answers: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("answers", default=[], dist_reduce_fx="cat")

    def update(
        self,
        predictions: Predictions,
        references: References,
        metadata: Metadata | None = None,
    ) -> None:
        """Add samples to the set.

        Raises:
            ValueError: If predictions and references do not belong together.
        """
        lines = [
            json.dumps([item.prediction, item.references, dict(item.metadata)]) + "\n"
            for item in make_items(predictions, references, metadata)
        ]
        encoded = bytearray("".join(lines).encode())
        self.answers.append(torch.frombuffer(encoded, dtype=torch.uint8).to(self.device))

    def compute(self) -> Tensor:
        """Return the score of the set so far, a scalar in percent.

        Raises:
            ValueError: If no sample was added.
        """
        if not len(self.answers):
            raise ValueError("nothing to score: no predictions")
        text = bytes(dim_zero_cat(self.answers).tolist()).decode()
        rows = [json.loads(line) for line in text.splitlines()]
        score = self.score(*([row[part] for row in rows] for part in range(3)))
        return torch.tensor(score.value)

    def score(
        self,
        predictions: Predictions,
        references: References,
        metadata: Metadata | None = None,
    ) -> TaskScore:
        """Score a whole set at once, leaving the state of `update` alone.

        Args:
            predictions: One answer per sample; None where there is none, which is scored like an
                empty one unless the metric says otherwise.
            references: Accepted answers per sample.
            metadata: What else is known of each sample; only the keys in `needs` are read.

        Returns:
            Value and per-sample scores in percent.

        Raises:
            ValueError: If the set is empty, or predictions, references and metadata do not
                belong together, or the rule misses something in them.
        """
        return self._score(make_items(predictions, references, metadata))

    @abstractmethod
    def _score(self, items: Sequence[ScoringItem]) -> TaskScore:
        """Score a checked, non-empty set."""
