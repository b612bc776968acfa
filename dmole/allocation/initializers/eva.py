"""Starts a new expert in the directions of the linear's inputs (EVA)."""

from __future__ import annotations

from torch import Tensor

from dmole.allocation.initializers.base import Initializer, NewLinear, Values
from dmole.allocation.initializers.directions import completed, top_of_moments
from dmole.allocation.inputs import second_moment


class EvaInitializer(Initializer):
    r"""Sets ``A`` to the leading principal components of the linear's inputs, and ``B`` to 0.

    .. math:: X = U S V^\top, \qquad A = V_{1..r}^\top, \qquad B = 0

    with one row of :math:`X` for each valid token of the batches. The components are the
    eigenvectors of the second moment of the inputs, which is summed over all batches and ranks.
    Where there are fewer components than the rank, the remaining rows of ``A`` are orthonormal
    ones from the span of the Kaiming values.

    Cost: ``proxy_passes`` forward passes over the batches; ``in * in`` float32 numbers for each
    linear of the group on every rank; one symmetric eigenvalue decomposition of each, O(in^3).

    Args:
        proxy_fraction: See :class:`Initializer`.
        proxy_passes: See :class:`Initializer`.
        center: Whether the mean of the inputs is subtracted, as PEFT does.

    Raises:
        ValueError: If an argument is out of range.

    Source:
        EVA, 2024, https://arxiv.org/abs/2410.07170, with the same rank for all linears
        (``rho = 1``).
    """

    source = "inputs"

    def __init__(
        self, *, proxy_fraction: float = 0.01, proxy_passes: int = 1, center: bool = True
    ) -> None:
        super().__init__(proxy_fraction=proxy_fraction, proxy_passes=proxy_passes)
        self.center = center

    def start(self, linear: NewLinear, measured: Tensor | None) -> Values:
        """Return the components of the inputs."""
        empty = linear.down.new_zeros(0, linear.down.shape[1])
        rows = empty
        if measured is not None:
            rows = top_of_moments(second_moment(measured, center=self.center), linear.rank)
        return Values(completed(rows, linear.down, empty), found=len(rows))
