"""The choice of the past expert that a new one starts from."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

SURE = 0.1
"""Loss per token, a probability of 0.9, at which an expert knows the answers of any task."""


def closest_expert(
    losses: Mapping[str | None, float], entropy: float = math.inf, ratio: float = 1.5
) -> str | None:
    """Return the expert of the smallest loss, or None for a fresh start.

    An expert must be better than a fresh one, and either about as good as the frequencies of the
    answers alone or within `SURE`. One that writes answers of another form has to unlearn them
    first, and learns less from few samples than a fresh expert does.

    Args:
        losses: Mean loss over the answer tokens of the new task, by expert; None stands for a
            fresh start.
        entropy: Entropy of these tokens, see :func:`answer_entropy`.
        ratio: Largest loss of the chosen expert, relative to the entropy; infinity for any.

    Example:
        >>> closest_expert({None: 7.6, "count": 0.45, "hollow": 2.0}, entropy=0.5)
        'count'
        >>> closest_expert({None: 8.4, "count": 5.8}, entropy=0.5) is None
        True
    """
    best = min(losses, key=losses.__getitem__)
    known = losses[best] <= max(SURE, ratio * entropy) if math.isfinite(ratio) else True
    return best if known else None


def answer_entropy(answers: Iterable[Sequence[int]]) -> float:
    r"""Return the mean entropy of the answers' tokens by position, in nats.

    .. math:: H = \frac{1}{\sum_j n_j} \sum_j \sum_v - n_{jv} \log \frac{n_{jv}}{n_j}

    with :math:`n_{jv}` the number of answers whose token at position :math:`j` is :math:`v`. It is
    the smallest loss of a predictor that sees the position alone: neither image nor question nor
    earlier tokens. Few answers make it too small.

    Args:
        answers: Token ids of each answer, end token included.

    Returns:
        The entropy; 0 without answers.

    Example:
        >>> answer_entropy([[5, 1], [6, 1], [5, 1], [6, 1]])  # log(2) for the first of two tokens
        0.34657...
    """
    positions: list[Counter[int]] = []
    for answer in answers:
        for position, token in enumerate(answer):
            if position == len(positions):
                positions.append(Counter())
            positions[position][token] += 1
    total = sum(counts.total() for counts in positions)
    nats = sum(
        -count * math.log(count / counts.total())
        for counts in positions
        for count in counts.values()
    )
    return nats / total if total else 0.0
