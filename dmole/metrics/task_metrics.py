"""The task metrics a config can name. The arithmetic is in the modules they import."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from dmole.metrics.base import References, TaskMetric, TaskScore, mean_score
from dmole.metrics.boxes import (
    BoxFormat,
    BoxOrder,
    BoxParser,
    BoxReader,
    intersection_over_union,
    read_size,
)
from dmole.metrics.captions import cider, resolve_tokenizer
from dmole.metrics.matching import contains, exact_match
from dmole.metrics.retention_metrics import MME, MMMU, POPE
from dmole.metrics.vqa import soft_accuracy


class ExactMatch(TaskMetric):
    """Share of answers equal to an accepted one, trimmed and ignoring case."""

    def _score(self, predictions: Sequence[str], references: References) -> TaskScore:
        pairs = zip(predictions, references, strict=True)
        return mean_score([exact_match(text, accepted) for text, accepted in pairs])


class VQASoft(TaskMetric):
    """Mean support of the answers by several human ones (VQA accuracy)."""

    def _score(self, predictions: Sequence[str], references: References) -> TaskScore:
        pairs = zip(predictions, references, strict=True)
        return mean_score([soft_accuracy(text, accepted) for text, accepted in pairs])


class Contains(TaskMetric):
    """Share of answers in which an accepted one occurs, ignoring case.

    Args:
        refusal: A text that makes any answer wrong in which it occurs, e.g. "Unanswerable".
    """

    def __init__(self, refusal: str | None = None) -> None:
        super().__init__()
        self.refusal = refusal

    def _score(self, predictions: Sequence[str], references: References) -> TaskScore:
        pairs = zip(predictions, references, strict=True)
        return mean_score([contains(text, accepted, self.refusal) for text, accepted in pairs])


class CIDEr(TaskMetric):
    """CIDEr x 100 of captions, over the whole set (see `dmole.metrics.captions.cider`).

    Args:
        tokenizer: "ptb" (Java, comparable with published figures), "python", or "auto", which is
            "ptb" where Java is on the path. The attribute `tokenizer_name` says which it became.

    Raises:
        ValueError: If the tokenizer is unknown or needs a Java that is not there.
    """

    def __init__(self, tokenizer: Literal["auto", "ptb", "python"] = "auto") -> None:
        super().__init__()
        self.tokenizer_name = resolve_tokenizer(tokenizer)

    def _score(self, predictions: Sequence[str], references: References) -> TaskScore:
        value, per_sample = cider(predictions, references, self.tokenizer_name)
        return TaskScore(100.0 * value, [100.0 * score for score in per_sample])


class IoU(TaskMetric):
    """Share of predicted boxes that overlap an accepted one enough.

    A prediction without a readable box is wrong and stays in the denominator. The score's
    `details` hold ``mean_iou``, the mean overlap in percent, unreadable ones as 0.

    Args:
        threshold: Overlap needed, in 0..1.
        inclusive: Whether the threshold itself suffices (D-MoLE's SK-VG) or not (CoIN).
        box_format: Unit of the predicted boxes, see `dmole.metrics.boxes.BoxReader`.
        reference_format: Unit of the accepted boxes. One in pixels gives the image's size too:
            ``"[10, 20, 300, 200] size=640x480"``.
        order: Order of the coordinates in both.
        parser: How a predicted box is found in the text.
        bins: Token positions along an axis.

    Raises:
        ValueError: If an option is out of range or unknown.
    """

    def __init__(
        self,
        threshold: float = 0.5,
        inclusive: bool = True,
        *,
        box_format: BoxFormat = "auto",
        reference_format: BoxFormat = "auto",
        order: BoxOrder = "xyxy",
        parser: BoxParser = "bracket",
        bins: int = 1000,
    ) -> None:
        super().__init__()
        if not 0.0 <= threshold <= 1.0:
            raise ValueError(f"threshold must be in 0..1, got {threshold}")
        self.threshold = threshold
        self.inclusive = inclusive
        self.reader = BoxReader(box_format=box_format, order=order, parser=parser, bins=bins)
        self.reference_reader = BoxReader(box_format=reference_format, order=order, bins=bins)

    def overlap(self, prediction: str, references: Sequence[str]) -> float | None:
        """Return the best overlap with an accepted box in 0..1, None without a readable box.

        Raises:
            ValueError: If a reference holds no box; the message shows it.
        """
        overlaps = []
        for reference in references:
            size = read_size(reference)
            target = self.reference_reader.read(reference, size)
            if target is None:
                raise ValueError(f"reference holds no box: {reference!r}")
            box = self.reader.read(prediction, size)
            if box is None:
                return None
            overlaps.append(intersection_over_union(box, target))
        return max(overlaps)

    def _accepts(self, overlap: float | None) -> bool:
        if overlap is None:
            return False
        return overlap >= self.threshold if self.inclusive else overlap > self.threshold

    def _score(self, predictions: Sequence[str], references: References) -> TaskScore:
        pairs = zip(predictions, references, strict=True)
        overlaps = [self.overlap(text, accepted) for text, accepted in pairs]
        mean_iou = 100.0 * sum(overlap or 0.0 for overlap in overlaps) / len(overlaps)
        hits = [float(self._accepts(overlap)) for overlap in overlaps]
        return mean_score(hits, {"mean_iou": mean_iou})


METRICS: dict[str, type[TaskMetric]] = {
    "cider": CIDEr,
    "contains": Contains,
    "exact_match": ExactMatch,
    "iou": IoU,
    "mme": MME,
    "mmmu": MMMU,
    "pope": POPE,
    "vqa_soft": VQASoft,
}


def build_metric(spec: str | TaskMetric) -> TaskMetric:
    """Return the metric of a name with its default settings, or the metric itself.

    Args:
        spec: One of "cider", "contains", "exact_match", "iou", "mme", "mmmu", "pope", "vqa_soft",
            or an instance, which a config writes as `class_path` and `init_args`.

    Raises:
        ValueError: If the name is unknown; the message lists those there are.

    Example:
        >>> build_metric("exact_match").score(["Red"], [["red"]]).value
        100.0
    """
    if isinstance(spec, TaskMetric):
        return spec
    if spec not in METRICS:
        raise ValueError(f"unknown metric {spec!r}, expected one of {', '.join(sorted(METRICS))}")
    return METRICS[spec]()
