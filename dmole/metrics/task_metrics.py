"""The task metrics that belong to no benchmark. The arithmetic is in the modules they import."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from dmole.metrics.base import ScoringItem, TaskMetric, TaskScore, mean_score
from dmole.metrics.boxes import (
    BoxFormat,
    BoxOrder,
    BoxParser,
    BoxReader,
    intersection_over_union,
    read_size,
)
from dmole.metrics.captions import score_captions
from dmole.metrics.matching import contains, exact_match
from dmole.metrics.meteor import require_meteor
from dmole.metrics.tokenizers import resolve_tokenizer
from dmole.metrics.vqa import soft_accuracy


class ExactMatch(TaskMetric):
    """Share of answers equal to an accepted one, trimmed and ignoring case."""

    def _score(self, items: Sequence[ScoringItem]) -> TaskScore:
        return mean_score([exact_match(item.text, item.references) for item in items])


class VQASoft(TaskMetric):
    """Mean support of the answers by several human ones (VQA accuracy)."""

    def _score(self, items: Sequence[ScoringItem]) -> TaskScore:
        return mean_score([soft_accuracy(item.text, item.references) for item in items])


class Contains(TaskMetric):
    """Share of answers in which an accepted one occurs, ignoring case.

    Args:
        refusal: A text that makes any answer wrong in which it occurs, e.g. "Unanswerable".
    """

    def __init__(self, refusal: str | None = None) -> None:
        super().__init__()
        self.refusal = refusal

    def _score(self, items: Sequence[ScoringItem]) -> TaskScore:
        return mean_score([contains(item.text, item.references, self.refusal) for item in items])


class CaptionMetric(TaskMetric):
    """A figure of COCO evaluation x 100, over the whole set. Its details name the tokenizer.

    Args:
        tokenizer: "ptb" (Java, comparable with published figures), "python", or "auto", which is
            "ptb" where Java is on the path. The attribute `tokenizer_name` says which it became.

    Raises:
        ValueError: If the tokenizer is unknown or needs a Java that is not there.
    """

    figure: ClassVar[tuple[str, str]]
    """Name to ask `score_captions` for, and name in its answer."""

    def __init__(self, tokenizer: Literal["auto", "ptb", "python"] = "auto") -> None:
        super().__init__()
        self.tokenizer_name = resolve_tokenizer(tokenizer)

    def _score(self, items: Sequence[ScoringItem]) -> TaskScore:
        asked, name = self.figure
        texts, references = [item.text for item in items], [item.references for item in items]
        found = score_captions(texts, references, self.tokenizer_name, (asked,))
        value, per_sample = found[name]
        details: dict[str, float | str] = {"tokenizer": self.tokenizer_name}
        return TaskScore(100.0 * value, [100.0 * score for score in per_sample], details)


class CIDEr(CaptionMetric):
    """CIDEr x 100 of captions (see `dmole.metrics.captions.cider`); it may exceed 100."""

    figure = ("cider", "cider")


class BLEU4(CaptionMetric):
    """BLEU-4 of captions, of the summed counts of the set."""

    figure = ("bleu", "bleu_4")


class ROUGEL(CaptionMetric):
    """ROUGE-L of captions."""

    figure = ("rouge_l", "rouge_l")


class METEOR(CaptionMetric):
    """METEOR of captions, by its Java program.

    Raises:
        ValueError: If there is no Java on the path.
    """

    figure = ("meteor", "meteor")

    def __init__(self, tokenizer: Literal["auto", "ptb", "python"] = "auto") -> None:
        super().__init__(tokenizer)
        require_meteor()


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

    def _score(self, items: Sequence[ScoringItem]) -> TaskScore:
        overlaps = [self.overlap(item.text, item.references) for item in items]
        mean_iou = 100.0 * sum(overlap or 0.0 for overlap in overlaps) / len(overlaps)
        hits = [float(self._accepts(overlap)) for overlap in overlaps]
        return mean_score(hits, {"mean_iou": mean_iou})
