"""From reconstruction losses to ordered experts and gates. Pure functions, no model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor


def select_experts(
    losses: Tensor,
    thresholds: Tensor,
    *,
    max_experts: int = 2,
    second_ratio: float | None = None,
    ranks: Tensor | None = None,
    newest: Sequence[int] | None = None,
) -> list[tuple[int, ...]]:
    r"""Return the experts of each sample, best first; empty means the base model alone.

    .. math:: C(x) = \{ i : \ell_i(x) < \tau_i \}, \quad \text{active} = \text{smallest in } C

    Args:
        losses: Reconstruction losses of shape ``(B, E)``; infinite where an expert has no
            reconstructor.
        thresholds: Shape ``(E,)``; a loss must be strictly below.
        max_experts: Maximum number of experts of a sample.
        second_ratio: Use a further expert only where its loss is within this factor of the first
            one's loss; None is the published rule.
        ranks: Shape ``(B, E)``; the accepted expert with the smallest value is the first, and
            ``second_ratio`` compares these values. None takes the losses, the published rule.
        newest: Column of the newest version of each column's expert. It stands for all versions:
            it is accepted where one of them is, with the smallest value among those. None if no
            expert has versions.

    Returns:
        One tuple of columns per sample; ties go to the lower column.

    Raises:
        ValueError: If shapes do not match or an argument is out of range.

    Source:
        D-MoLE, 2025, https://arxiv.org/abs/2506.11672.

    Example:
        >>> select_experts(torch.tensor([[0.3, 0.1, 0.2]]), torch.tensor([1.0, 1.0, 1.0]))
        [(1, 2)]
    """
    if max_experts < 1:
        raise ValueError(f"max_experts must be at least 1, got {max_experts}")
    if second_ratio is not None and second_ratio < 1:
        raise ValueError(f"second_ratio must be at least 1, got {second_ratio}")
    result = []
    for ranked in _ranked(losses, thresholds, ranks, newest):
        best = next(iter(ranked.values()), 0.0)
        bound = None if second_ratio is None else best * second_ratio
        kept = [column for column, rank in ranked.items() if bound is None or rank <= bound]
        result.append(tuple(kept[:max_experts]))
    return result


def choose_partner(
    losses: Tensor,
    thresholds: Tensor,
    ranks: Tensor | None = None,
    newest: Sequence[int] | None = None,
) -> list[int | None]:
    """Return each sample's best past expert below its threshold, or None.

    Args:
        losses: Reconstruction losses under the past experts, shape ``(B, E)``.
        thresholds: Shape ``(E,)``.
        ranks: See :func:`select_experts`.
        newest: See :func:`select_experts`.

    Source:
        D-MoLE, 2025, https://arxiv.org/abs/2506.11672. The threshold is the release's.
    """
    return [next(iter(ranked), None) for ranked in _ranked(losses, thresholds, ranks, newest)]


def batch_vote(
    losses: Tensor,
    thresholds: Tensor,
    *,
    support: float = 0.3,
    max_experts: int = 2,
    support_first: bool = False,
    ranks: Tensor | None = None,
    newest: Sequence[int] | None = None,
) -> tuple[int, ...]:
    """Return one set of experts for a whole batch, by vote of its samples.

    Each sample votes for its best expert below its threshold. The result depends on the other
    samples and on the batch size; the function exists to reproduce the release.

    Args:
        losses: Reconstruction losses of shape ``(B, E)``.
        thresholds: Shape ``(E,)``.
        support: Minimum share of the votes cast that an expert after the first needs.
        max_experts: Maximum number of experts.
        support_first: Whether the first expert needs the support, too (choice of a training
            partner).
        ranks: See :func:`select_experts`.
        newest: See :func:`select_experts`.

    Returns:
        Columns with the most votes first; ties go to the lower column.

    Source:
        D-MoLE, 2025, https://arxiv.org/abs/2506.11672 (code release).
    """
    voted = _ranked(losses, thresholds, ranks, newest)
    votes = Counter(next(iter(ranked)) for ranked in voted if ranked)
    cast = votes.total()
    winners = sorted(votes, key=lambda column: (-votes[column], column))[:max_experts]
    return tuple(
        column
        for rank, column in enumerate(winners)
        if votes[column] / cast >= support or (rank == 0 and not support_first)
    )


def gates_from_order(order: Sequence[Sequence[int]], num_experts: int) -> Tensor:
    """Return hard gates of shape ``(B, E)``, float32: 1 where an expert is on."""
    gates = torch.zeros(len(order), num_experts)  # (B, E)
    for sample, columns in enumerate(order):
        gates[sample, list(columns)] = 1.0
    return gates


def gate_set_name(names: Sequence[str]) -> str:
    """Return the name of a gate set in reports: names joined by ``+``, or ``base``."""
    return "+".join(names) or "base"


def _ranked(
    losses: Tensor, thresholds: Tensor, ranks: Tensor | None, newest: Sequence[int] | None
) -> list[dict[int, float]]:
    """Return the columns below their threshold of each sample with their ranks, smallest first."""
    ranks = losses if ranks is None else ranks
    if losses.ndim != 2 or thresholds.shape != losses.shape[1:] or ranks.shape != losses.shape:
        raise ValueError(
            f"expected losses (B, E), thresholds (E,) and ranks (B, E), got "
            f"{tuple(losses.shape)}, {tuple(thresholds.shape)} and {tuple(ranks.shape)}"
        )
    newest = range(losses.shape[1]) if newest is None else newest
    accepted = (losses < thresholds).tolist()  # (B, E) < (E,)
    result = []
    for row, flags in zip(ranks.tolist(), accepted, strict=True):
        ranked: dict[int, float] = {}
        for column in sorted((c for c, flag in enumerate(flags) if flag), key=row.__getitem__):
            ranked.setdefault(newest[column], row[column])
        result.append(ranked)
    return result
