"""Task metrics that belong to no benchmark; the computation is in the imported modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from dmole.metrics.base import ScoringItem, TaskMetric, TaskScore, mean_score
from dmole.metrics.boxes import (
    BoxFormat,
    BoxOrder,
    BoxParser,
    BoxReader,
    in_image,
    intersection_over_union,
    read_size,
)
from dmole.metrics.captions import count_wordless, score_tokens, tokenize_captions
from dmole.metrics.matching import contains, exact_match
from dmole.metrics.meteor import require_meteor
from dmole.metrics.tokenizers import resolve_tokenizer
from dmole.metrics.vqa import normalize_answer, soft_accuracy


class ExactMatch(TaskMetric):
    """Share of answers equal to an accepted one, after trimming and ignoring case."""

    def _score(self, items: Sequence[ScoringItem]) -> TaskScore:
        return mean_score([exact_match(item.text, item.references) for item in items])


class VQASoft(TaskMetric):
    """Mean agreement of the answers with several human answers (VQA accuracy).

    An answer of which the normalizer leaves nothing, such as "" or "the", is unreadable.
    """

    def _score(self, items: Sequence[ScoringItem]) -> TaskScore:
        empty = [not normalize_answer(item.text) for item in items]
        scores = [
            0.0 if blank else soft_accuracy(item.text, item.references)
            for blank, item in zip(empty, items, strict=True)
        ]
        missing = sum(item.prediction is None for item in items)
        return mean_score(scores, {"unparsable": sum(empty) - missing})


class Contains(TaskMetric):
    """Share of answers that contain an accepted one, ignoring case.

    Args:
        refusal: A text such as "Unanswerable"; an answer that contains it is wrong.
    """

    def __init__(self, refusal: str | None = None) -> None:
        super().__init__()
        self.refusal = refusal

    def _score(self, items: Sequence[ScoringItem]) -> TaskScore:
        return mean_score([contains(item.text, item.references, self.refusal) for item in items])


class CaptionMetric(TaskMetric):
    """A figure of COCO evaluation x 100, over the whole set. Its details name the tokenizer.

    A caption in which the tokenizer finds no word is unreadable and scores 0.

    Args:
        tokenizer: "ptb" (Java, comparable with published figures), "python", or "auto", which is
            "ptb" if Java is on the path. The attribute `tokenizer_name` holds the resolved name.

    Raises:
        ValueError: If the tokenizer is unknown, or needs Java and Java is missing.
    """

    figure: ClassVar[tuple[str, str]]
    """Name passed to `score_tokens`, and name in its result."""

    def __init__(self, tokenizer: Literal["auto", "ptb", "python"] = "auto") -> None:
        super().__init__()
        self.tokenizer_name = resolve_tokenizer(tokenizer)

    def _score(self, items: Sequence[ScoringItem]) -> TaskScore:
        requested, name = self.figure
        texts, references = [item.text for item in items], [item.references for item in items]
        predicted, accepted = tokenize_captions(texts, references, self.tokenizer_name)
        value, per_sample = score_tokens(predicted, accepted, (requested,))[name]
        pairs = zip(per_sample, predicted, strict=True)
        earned = [score if words else 0.0 for score, words in pairs]
        if earned != per_sample:  # an empty caption equals an empty reference in COCO evaluation
            value = sum(earned) / len(earned) if name == "rouge_l" or not any(predicted) else value
        details: dict[str, float | str] = {
            "tokenizer": self.tokenizer_name,
            "unparsable": count_wordless([item.prediction for item in items], predicted),
        }
        return TaskScore(100.0 * value, [100.0 * score for score in earned], details)


class CIDEr(CaptionMetric):
    """CIDEr x 100 of captions (see `dmole.metrics.captions.cider`); it may exceed 100."""

    figure = ("cider", "cider")


class BLEU4(CaptionMetric):
    """BLEU-4 of captions, from the summed counts of the set."""

    figure = ("bleu", "bleu_4")


class ROUGEL(CaptionMetric):
    """ROUGE-L of captions."""

    figure = ("rouge_l", "rouge_l")


class METEOR(CaptionMetric):
    """METEOR of captions, computed by its Java program.

    Raises:
        ValueError: If Java is not on the path.
    """

    figure = ("meteor", "meteor")

    def __init__(self, tokenizer: Literal["auto", "ptb", "python"] = "auto") -> None:
        super().__init__(tokenizer)
        require_meteor()


class IoU(TaskMetric):
    """Share of predicted boxes whose overlap with an accepted box reaches a threshold.

    A prediction without a readable box is wrong and stays in the denominator. So is one whose
    box has no area or lies outside the image: its corners are swapped, or its unit is not
    `box_format`. Both are counted as ``unparsable``. The score's `details` hold ``mean_iou``, the
    mean overlap in percent, with unreadable boxes as 0.

    Args:
        threshold: Required overlap, in 0..1.
        inclusive: Whether an overlap equal to the threshold suffices (D-MoLE's SK-VG) or not
            (CoIN).
        box_format: Unit of the predicted boxes, see `dmole.metrics.boxes.BoxReader`.
        reference_format: Unit of the accepted boxes. A box in pixels includes the image size:
            ``"[10, 20, 300, 200] size=640x480"``.
        order: Order of the coordinates in both.
        parser: Parser of predicted boxes, see `dmole.metrics.boxes.BoxReader`.
        bins: Number of token positions along an axis.

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
            ValueError: If a reference holds no box; the message quotes it.
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
        unread = [item.prediction is not None and not self._is_box(item) for item in items]
        return mean_score(hits, {"mean_iou": mean_iou, "unparsable": sum(unread)})

    def _is_box(self, item: ScoringItem) -> bool:
        size = next(filter(None, map(read_size, item.references)), None)
        box = self.reader.read(item.text, size)
        return box is not None and in_image(box)
