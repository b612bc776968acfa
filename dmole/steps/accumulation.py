"""The weights of the micro-batches and ranks of one optimizer step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from dmole.data.window import Counts, Window
from dmole.distributed import is_distributed, sum_over_ranks
from dmole.transfer import to_device

Unit = Literal["tokens", "samples", "inputs", "batches", "steps"]
"""What a term of the loss is a mean over: a field of :class:`~dmole.data.window.Counts`."""


@dataclass(frozen=True)
class Share:
    r"""The weight of a micro-batch in its optimizer step.

    A term that is a mean over units, such as answer tokens, is weighted so that the step descends
    the mean over all units of its window, on all ranks:

    .. math:: L_{r,m}' = \frac{R\, M\, n_{r,m}}{\sum_{i,j} n_{i,j}} L_{r,m}, \qquad
        \frac{1}{R\,M} \sum_{r,m} L_{r,m}' =
        \frac{\sum_{r,m} n_{r,m} L_{r,m}}{\sum_{r,m} n_{r,m}}

    Distributed training divides by the ranks :math:`R`, Lightning by ``accumulate_grad_batches``,
    :math:`M`, also where the last window of an epoch has fewer micro-batches.

    Args:
        own: Counts of the micro-batch.
        total: Counts of the window on all ranks, ``(5,)`` float32; None if the micro-batch is the
            whole step.
        parts: The product :math:`R\,M`.
    """

    own: Counts
    total: Tensor | None = None
    parts: int = 1

    def has(self, unit: Unit) -> bool:
        """Return whether the micro-batch has a unit of a kind, so that a term over it counts."""
        return bool(getattr(self.own, unit))

    def weigh(self, term: Tensor, unit: Unit) -> Tensor:
        """Return a term, a mean over a kind of unit, times its weight; unchanged if alone.

        Args:
            term: Scalar; zero if this micro-batch has no unit.
            unit: The kind of unit.
        """
        if self.total is None:
            return term
        index = Counts._fields.index(unit)
        return term * (float(self.parts * self.own[index]) / self.total[index])


class Accumulation:
    """Weighs the micro-batches of each optimizer step and sums up what is logged of it."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._parts = 1

    def enter(self, loss: Tensor, window: Window, accumulated: int) -> tuple[Share, Tensor]:
        """Return the share of a micro-batch, and the loss over its tokens on all ranks.

        All ranks must call it. The loss is that of the micro-batch alone, without a graph.

        Args:
            loss: Mean over the answer tokens of this rank, scalar; zero if there are none.
            window: Place of the micro-batch in its window.
            accumulated: Lightning's ``accumulate_grad_batches``.
        """
        if window.first:
            self._sums = {}
        ranks = dist.get_world_size() if is_distributed() else 1
        self._parts = accumulated
        if ranks * accumulated == 1:
            return Share(window.own), loss.detach()
        numbers = torch.tensor([window.own.tokens, *window.total], dtype=torch.float32)
        counts = to_device(numbers, loss.device)
        weighted = loss.detach().float() * counts[0]
        sums = sum_over_ranks(torch.cat((weighted[None], counts)))  # (7,)
        # a window without any answer token has only zero terms
        total = sums[2:].clamp_min(1)
        self._add("weighted", sums[0])
        self._add("tokens", sums[1])
        share = Share(window.own, total, ranks * accumulated)
        return share, sums[0] / sums[1].clamp_min(1)

    def mean_loss(self, loss: Tensor) -> Tensor:
        """Return the loss over all tokens of the window so far.

        Args:
            loss: The second result of :meth:`enter`.
        """
        if self._parts == 1:
            return loss
        return self._sums["weighted"] / self._sums["tokens"].clamp_min(1)

    def term(self, name: str, value: Tensor) -> Tensor:
        """Return the sum of a weighted term over the window so far, as its step descends it."""
        return value.detach() if self._parts == 1 else self._add(name, value.detach() / self._parts)

    def _add(self, name: str, value: Tensor) -> Tensor:
        total = self._sums[name] = self._sums.get(name, 0) + value
        return total
