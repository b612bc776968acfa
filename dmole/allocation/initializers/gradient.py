"""Starts a new expert in the directions of the weight's gradient (LoRA-GA)."""

from __future__ import annotations

import math
from typing import Literal, get_args

from torch import Tensor

from dmole.allocation.initializers.base import Initializer, NewLinear, Values
from dmole.allocation.initializers.directions import completed, top_directions

Scale = Literal["unit", "stable"]


class GradientInitializer(Initializer):
    r"""Sets ``A`` to the leading right singular vectors of the gradient of ``W``, and ``B`` to 0.

    .. math:: \nabla_W L = U S V^\top, \qquad A = c\, V_{1..r}^\top, \qquad B = 0

    The first gradient step changes the weight by a multiple of
    :math:`\nabla_W L\, V_{1..r} V_{1..r}^\top`, the best approximation of the gradient of rank
    ``r``. LoRA-GA also sets ``B``, to further left singular vectors, and subtracts the initial
    product from ``W``. Here all experts share the frozen ``W``, so ``B`` is 0, which leaves the
    output unchanged.

    Where the gradient has fewer directions than the rank, or none as in a vision encoder on text
    alone, the remaining rows of ``A`` are orthonormal ones from the span of the Kaiming values.

    Cost: ``proxy_passes`` times a forward and backward pass over the batches; a float32 gradient
    of each weight of the group, spread over the ranks; and one singular value decomposition of
    each weight's gradient, O(out * in * min(out, in)), on the rank that holds it.

    Args:
        proxy_fraction: See :class:`Initializer`.
        proxy_passes: See :class:`Initializer`.
        scale: Length ``c`` of the rows of ``A``. ``unit``: 1. ``stable``:
            :math:`\sqrt[4]{d_{out}} / \sqrt{\gamma}`.
        gamma: The :math:`\gamma` of ``stable``.

    Raises:
        ValueError: If an argument is out of range.

    Source:
        LoRA-GA, 2024, https://arxiv.org/abs/2407.05000.
    """

    source = "gradients"

    def __init__(
        self,
        *,
        proxy_fraction: float = 0.01,
        proxy_passes: int = 1,
        scale: Scale = "unit",
        gamma: float = 16.0,
    ) -> None:
        super().__init__(proxy_fraction=proxy_fraction, proxy_passes=proxy_passes)
        if scale not in get_args(Scale):
            raise ValueError(f"scale must be one of {get_args(Scale)}, got {scale!r}")
        if not 0 < gamma < math.inf:
            raise ValueError(f"gamma must be a positive number, got {gamma}")
        self.scale: Scale = scale
        self.gamma = gamma

    def start(self, linear: NewLinear, measured: Tensor | None) -> Values:
        """Return scaled singular vectors of the gradient."""
        empty = linear.down.new_zeros(0, linear.down.shape[1])
        rows = empty if measured is None else top_directions(measured, linear.rank)
        length = linear.out_features**0.25 / self.gamma**0.5 if self.scale == "stable" else 1.0
        return Values(completed(rows, linear.down, empty) * length, found=len(rows))
