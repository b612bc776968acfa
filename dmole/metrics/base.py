"""What every task metric shares: checked pairs of answers, a score in percent, and its state."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

References = Sequence[Sequence[str]]
"""Accepted answers: one non-empty list of strings per sample."""


@dataclass(frozen=True)
class TaskScore:
    """The result of scoring one test set.

    Args:
        value: Score of the whole set in percent (CIDEr x 100 may exceed 100).
        per_sample: Score of each sample in percent, in the order of the predictions.
        details: Further figures of the set in percent, by name (`iou` adds ``mean_iou``).
    """

    value: float
    per_sample: list[float]
    details: dict[str, float] = field(default_factory=dict)


def check_pairs(predictions: Sequence[str], references: References) -> None:
    """Refuse predictions and references that do not belong together.

    Raises:
        ValueError: If the lengths differ, nothing is to be scored, or a sample has no list of
            references; the message names the position.
    """
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions but {len(references)} reference lists")
    if not predictions:
        raise ValueError("nothing to score: no predictions")
    for position, accepted in enumerate(references):
        if isinstance(accepted, str):
            raise ValueError(f"references[{position}] is a string, not a list: {accepted!r}")
        if not accepted:
            raise ValueError(f"references[{position}] is empty")


def mean_score(per_sample: Sequence[float], details: dict[str, float] | None = None) -> TaskScore:
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
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    answers: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("answers", default=[], dist_reduce_fx="cat")

    def update(self, predictions: Sequence[str], references: References) -> None:
        """Add samples to the set.

        Raises:
            ValueError: If predictions and references do not belong together.
        """
        check_pairs(predictions, references)
        lines = [
            json.dumps([text, list(accepted)]) + "\n"
            for text, accepted in zip(predictions, references, strict=True)
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
        pairs = [json.loads(line) for line in text.splitlines()]
        score = self.score([pair[0] for pair in pairs], [pair[1] for pair in pairs])
        return torch.tensor(score.value)

    def score(self, predictions: Sequence[str], references: References) -> TaskScore:
        """Score a whole set at once, leaving the state of `update` alone.

        Args:
            predictions: One answer per sample.
            references: Accepted answers per sample.

        Returns:
            Value and per-sample scores in percent.

        Raises:
            ValueError: If the set is empty or predictions and references do not belong together.
        """
        check_pairs(predictions, references)
        return self._score(predictions, references)

    @abstractmethod
    def _score(self, predictions: Sequence[str], references: References) -> TaskScore:
        """Score a checked, non-empty set."""
