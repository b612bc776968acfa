"""Base of all task metrics: checked items, scores in percent, and the state."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

Profile = Literal["published", "corrected"]
PROFILES: tuple[Profile, Profile] = ("published", "corrected")

Predictions = Sequence[str | None]
"""One predicted answer per sample; None if a sample has none."""

References = Sequence[Sequence[str]]
"""Accepted answers: one non-empty list of strings per sample."""

Metadata = Sequence[Mapping[str, Any]]
"""Further facts per sample that a rule needs: the size of its image, its choices."""


@dataclass(frozen=True)
class ProfileScore:
    """Result of one profile of a metric: value and per-sample scores in percent."""

    value: float
    per_sample: list[float]


@dataclass(frozen=True)
class TaskScore:
    """The result of scoring one test set.

    Args:
        value: Score of the whole set in percent (CIDEr x 100 may exceed 100).
        per_sample: Score of each sample in percent, in the order of the predictions.
        details: Further results of the set, by name. Every metric has the numbers of samples
            without an answer (``missing``) and of answers that it could not read
            (``unparsable``); neither earns a point. Others are ``mean_iou`` in percent and the
            name of the ``tokenizer``.
        profiles: The scores under each profile, for metrics that have two; `value` and
            `per_sample` repeat the selected one.
        needs: Keys of the metadata that the metric reads if a sample has them.
    """

    value: float
    per_sample: list[float]
    details: dict[str, float | str] = field(default_factory=dict)
    profiles: dict[str, ProfileScore] = field(default_factory=dict)
    needs: tuple[str, ...] = ()

    def of_sample(self, index: int, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """Return the additional fields of a sample in a predictions file.

        Args:
            index: Position of the sample.
            metadata: Metadata of the sample.

        Returns:
            The score under each profile (``scores``) and the metadata that the metric needs
            (``metadata``), so that the file can be scored again; each is left out if empty.
        """
        needed = {key: metadata[key] for key in self.needs if key in metadata}
        scores = {name: each.per_sample[index] for name, each in self.profiles.items()}
        return ({"scores": scores} if scores else {}) | ({"metadata": needed} if needed else {})


@dataclass(frozen=True)
class ScoringItem:
    """The input of a scoring rule: prediction, references and metadata of one sample.

    Args:
        prediction: The predicted answer; None if there is none.
        references: Accepted answers, at least one.
        metadata: Further facts about the sample.
    """

    prediction: str | None
    references: tuple[str, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The predicted answer; empty if there is none."""
        return self.prediction or ""


def scoring_facts(scores: Mapping[str, TaskScore]) -> dict[str, Any]:
    """Return the fields of metrics.json about the last scoring, by task.

    Args:
        scores: The scores of each task.

    Returns:
        ``profiles``, the values under each profile, for tasks whose metric has profiles; and
        ``scoring``, details such as the tokenizer, for tasks whose metric has details.
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
    """Combine predictions, references and metadata into checked items.

    Raises:
        ValueError: If the lengths differ, there is nothing to score, a prediction or reference is
            not text, or a sample has no list of references; the message names the position.
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
        if not all(isinstance(reference, str) for reference in accepted):
            raise ValueError(f"references[{position}] must hold texts only: {accepted!r}")
    for position, text in enumerate(predictions):
        if text is not None and not isinstance(text, str):
            raise ValueError(f"predictions[{position}] must be text or None, got {text!r}")
    extras = metadata if metadata is not None else [{}] * len(predictions)
    return [
        ScoringItem(text, tuple(accepted), extra)
        for text, accepted, extra in zip(predictions, references, extras, strict=True)
    ]


def mean_score(
    per_sample: Sequence[float], details: dict[str, float | str] | None = None
) -> TaskScore:
    """Return the plain mean of scores in 0..1 as a `TaskScore` in percent.

    Args:
        per_sample: Scores of shape ``(samples,)`` in 0..1.
        details: Details of the score.
    """
    percent = [100.0 * score for score in per_sample]
    return TaskScore(sum(percent) / len(percent), percent, details or {})


class TaskMetric(Metric):
    """A metric over predicted and accepted answers, in percent.

    A subclass implements `_score`. `update` stores the texts (as bytes, so that ranks can gather
    them), because CIDEr is a property of the whole set and not a mean of batches.

    Attributes:
        needs: Keys of the metadata that the rule reads if a sample has them.
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
            ValueError: If predictions, references and metadata do not match.
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
        """Score a whole set at once, without changing the state of `update`.

        Args:
            predictions: One answer per sample; None, for no answer, is wrong. Published profiles
                may leave such samples out.
            references: Accepted answers per sample.
            metadata: Further facts per sample; only the keys in `needs` are read.

        Returns:
            Value and per-sample scores in percent. The details hold ``missing`` and
            ``unparsable``; without a count of the metric's own, a blank answer is unreadable.

        Raises:
            ValueError: If the set is empty, predictions, references and metadata do not match, or a
                value that the rule needs is missing.
        """
        items = make_items(predictions, references, metadata)
        score = self._score(items)
        missing = sum(item.prediction is None for item in items)
        blank = sum(not item.text.strip() for item in items) - missing
        counts: dict[str, float | str] = {"missing": missing, "unparsable": blank}
        return replace(score, details=counts | score.details)

    @abstractmethod
    def _score(self, items: Sequence[ScoringItem]) -> TaskScore:
        """Score a checked, non-empty set."""
