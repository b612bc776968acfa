"""Caption metrics over whole sets: BLEU, ROUGE-L, METEOR and CIDEr as in COCO evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from rapidfuzz.distance import LCSseq

from dmole.metrics.meteor import meteor
from dmole.metrics.tokenizers import Tokenizer, resolve_tokenizer, tokenize

__all__ = ["SetScore", "bleu", "cider", "resolve_tokenizer", "rouge_l", "score_captions"]

SetScore = tuple[float, list[float]]
"""A figure of the whole set and one of each sample."""

_ROUGE_BETA = 1.2


def _by_index(
    predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    accepted = {index: list(texts) for index, texts in enumerate(references)}
    return accepted, {index: [text] for index, text in enumerate(predictions)}


def cider_of_tokens(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> SetScore:
    """Return CIDEr-D (0..10) of texts whose tokens are separated by spaces.

    All scores are 0 if no reference has a word.
    """
    if not any(text for texts in references for text in texts):
        return 0.0, [0.0] * len(predictions)  # pycocoevalcap fails
    from pycocoevalcap.cider.cider import Cider  # slow to load, needed for captions only

    value, per_sample = Cider().compute_score(*_by_index(predictions, references))
    return float(value), [float(score) for score in per_sample]


def bleu(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[SetScore]:
    """Return BLEU-1 to BLEU-4 (0..1) of texts whose tokens are separated by spaces.

    The figure of the set is computed from the summed counts, with the brevity penalty of the
    closest reference lengths; it is not the mean of the samples.

    Source:
        Papineni et al., 2002, https://aclanthology.org/P02-1040 (as in COCO evaluation).
    """
    from pycocoevalcap.bleu.bleu import Bleu

    values, per_sample = Bleu(4).compute_score(*_by_index(predictions, references), verbose=0)
    return [
        (float(value), [float(score) for score in scores])
        for value, scores in zip(values, per_sample, strict=True)
    ]


def rouge_l(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> SetScore:
    """Return ROUGE-L (0..1) of texts whose tokens are separated by spaces.

    Best precision and best recall over the references are combined as F-beta with beta 1.2.

    Source:
        Lin, 2004, https://aclanthology.org/W04-1013 (as in COCO evaluation).

    Example:
        >>> rouge_l(["a cat sits"], [["a cat sits"]])
        (1.0, [1.0])
    """
    pairs = zip(predictions, references, strict=True)
    scores = [_rouge(text, accepted) for text, accepted in pairs]
    return float(np.mean(scores)), scores


def _rouge(text: str, accepted: Sequence[str]) -> float:
    words = text.split(" ")
    precision = recall = 0.0
    for reference in accepted:
        target = reference.split(" ")
        shared = LCSseq.similarity(target, words)
        precision = max(precision, shared / len(words))
        recall = max(recall, shared / len(target))
    if not precision or not recall:
        return 0.0
    weight = _ROUGE_BETA**2
    return (1 + weight) * precision * recall / (recall + weight * precision)


def cider(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    tokenizer: Tokenizer = "python",
) -> SetScore:
    """Return CIDEr of a whole set and of each sample (0..10, published figures are x 100).

    Word weights (inverse document frequency) come from the references of the set. The score of a
    sample therefore depends on the other samples, and a set of one scores 0. Never average CIDEr
    over batches or ranks.

    Args:
        predictions: One caption per sample.
        references: Reference captions per sample.
        tokenizer: How to find words.

    Source:
        Vedantam et al., 2015, https://arxiv.org/abs/1411.5726 (CIDEr-D as in COCO evaluation).

    Example:
        >>> cider(["a cat", "a red dog"], [["a cat"], ["a dog"]])[1][0]
        5.0
    """
    return score_captions(predictions, references, tokenizer, ("cider",))["cider"]


def score_captions(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    tokenizer: Tokenizer,
    names: Sequence[str],
) -> dict[str, SetScore]:
    """Return caption metrics by name; each text is tokenized once.

    Args:
        predictions: One caption per sample.
        references: Reference captions per sample.
        tokenizer: How to find words.
        names: Any of ``bleu`` (yields bleu_1 to bleu_4), ``meteor``, ``rouge_l``, ``cider``.

    Returns:
        ``cider`` in 0..10, the others in 0..1.

    Raises:
        ValueError: If METEOR or the tokenizer needs Java and Java is missing.
    """
    return score_tokens(*tokenize_captions(predictions, references, tokenizer), names)


def tokenize_captions(
    predictions: Sequence[str], references: Sequence[Sequence[str]], tokenizer: Tokenizer
) -> tuple[list[str], list[list[str]]]:
    """Return predictions and references as words separated by spaces.

    Raises:
        ValueError: If the tokenizer needs Java and Java is missing.
    """
    words = iter(tokenize([text for texts in references for text in texts], tokenizer))
    accepted = [[next(words) for _ in texts] for texts in references]
    return tokenize(predictions, tokenizer), accepted


def count_wordless(predictions: Sequence[str | None], tokens: Sequence[str]) -> int:
    """Return the number of captions in which the tokenizer found no word.

    Args:
        predictions: The captions; None, for no caption, is not counted.
        tokens: The words of each, separated by spaces.
    """
    pairs = zip(predictions, tokens, strict=True)
    return sum(text is not None and not words for text, words in pairs)


def score_tokens(
    predicted: Sequence[str], accepted: Sequence[Sequence[str]], names: Sequence[str]
) -> dict[str, SetScore]:
    """Return caption metrics by name, of texts whose tokens are separated by spaces.

    Args:
        predicted: One caption per sample.
        accepted: Reference captions per sample.
        names: See `score_captions`.

    Returns:
        ``cider`` in 0..10, the others in 0..1.

    Raises:
        ValueError: If METEOR needs Java and Java is missing.
    """
    single: dict[str, Callable[[Sequence[str], Sequence[Sequence[str]]], SetScore]] = {
        "meteor": meteor,
        "rouge_l": rouge_l,
        "cider": cider_of_tokens,
    }
    scores: dict[str, SetScore] = {}
    for name in names:
        if name == "bleu":
            orders = bleu(predicted, accepted)
            scores |= {f"bleu_{order}": score for order, score in enumerate(orders, start=1)}
        else:
            scores[name] = single[name](predicted, accepted)
    return scores
