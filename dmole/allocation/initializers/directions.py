"""Directions of a linear's input: singular vectors, orthonormal bases, projections.

Directions are rows of length 1. All is computed in float32 by exact decompositions.
"""

from __future__ import annotations

import torch
from torch import Tensor


def top_directions(matrix: Tensor, count: int, scale: float = 0.0) -> Tensor:
    r"""Return the right singular vectors of the largest singular values.

    The entry of the largest absolute value of each vector is positive, so that signs do not depend
    on the program that computes them.

    Args:
        matrix: ``(n, d)``.
        count: Number of vectors.
        scale: Norm of the matrix that this one was projected from. Singular values within its
            rounding error count as zero. 0 takes the largest singular value.

    Returns:
        ``(k, d)`` with ``k <= count``: a vector without a singular value has no direction.

    Example:
        >>> top_directions(torch.tensor([[0.0, -3.0, 0.0], [1.0, 0.0, 0.0]]), 1)
        tensor([[0., 1., 0.]])
    """
    matrix = matrix.float()
    _, values, rows = torch.linalg.svd(matrix, full_matrices=False)  # (min,), (min, d)
    return _signed(rows[:count][_above_noise(values, max(matrix.shape), scale)[:count]])


def top_of_moments(moments: Tensor, count: int) -> Tensor:
    """Return the eigenvectors of the largest eigenvalues of a second moment.

    They are the right singular vectors of the matrix ``X`` whose moment is ``X.T @ X``.

    Args:
        moments: ``(d, d)``, symmetric.
        count: Number of vectors.

    Returns:
        ``(k, d)`` with ``k <= count``.
    """
    values, rows = spectrum(moments)
    return _signed(rows[:count][_above_noise(values, len(moments), 0.0)[:count]])


def spectrum(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues of a second moment, largest first, and the eigenvectors as rows."""
    values, columns = torch.linalg.eigh(moments.float())  # ascending
    return values.flip(0).clamp(min=0), columns.flip(1).t()


def principal_directions(matrix: Tensor, energy: float) -> Tensor:
    r"""Return the leading right singular vectors whose energy stays below a share, at least one.

    The energy of a vector is its squared singular value over the sum of all squares.

    Args:
        matrix: ``(n, d)``.
        energy: Share of the energy; 0 returns no vector.

    Returns:
        ``(k, d)``.

    Example:
        >>> len(principal_directions(torch.diag(torch.tensor([3.0, 2.0, 1.0])), 0.95))
        2
    """
    if not energy:
        return matrix.new_zeros(0, matrix.shape[1], dtype=torch.float32)
    _, values, rows = torch.linalg.svd(matrix.float(), full_matrices=False)
    squares = values.square()
    below = squares.cumsum(0) / squares.sum() < energy
    return _signed(rows[: max(int(below.sum()), 1)])


def missing_directions(moments: Tensor, basis: Tensor, energy: float) -> Tensor:
    r"""Return the directions that a basis lacks to hold a share of the energy of a second moment.

    The energy of a basis :math:`U` in a moment :math:`M` is
    :math:`\mathrm{tr}(U M U^\top) / \mathrm{tr}(M)`. The leading eigenvectors of what is left of
    :math:`M` outside the basis are added until the share is reached.

    Args:
        moments: ``(d, d)``, symmetric.
        basis: ``(k, d)``, orthonormal.
        energy: Share of the energy; 0 adds none.

    Returns:
        ``(n, d)``, orthonormal and orthogonal to the basis.

    Example:
        >>> moments = torch.diag(torch.tensor([6.0, 3.0, 1.0]))
        >>> missing_directions(moments, torch.eye(3)[:1], 0.85)
        tensor([[0., 1., 0.]])
    """
    moments = moments.float()
    left = without(without(moments, basis).t(), basis)  # (d, d)
    values, rows = spectrum((left + left.t()) / 2)
    total, rest = float(moments.trace()), float(values.sum())
    if total <= 0:
        return moments.new_zeros(0, len(moments))
    held = (total - rest) / total + torch.cat([values.new_zeros(1), values.cumsum(0)]) / total
    count = int((held[:-1] < energy).sum())  # the last one added reaches the share
    count = min(count, int(_above_noise(values, len(moments), total).sum()))
    return orthonormal(without(_signed(rows[:count]), basis))


def without(rows: Tensor, basis: Tensor) -> Tensor:
    """Return rows without their part in the span of an orthonormal basis.

    Args:
        rows: ``(n, d)``.
        basis: ``(k, d)``.

    Example:
        >>> without(torch.ones(1, 3), torch.eye(3)[:2])
        tensor([[0., 0., 1.]])
    """
    if not len(basis):
        return rows
    for _ in range(2):  # the second time removes the rounding of the first
        rows = rows - (rows @ basis.t()) @ basis
    return rows


def orthonormal(rows: Tensor) -> Tensor:
    """Return an orthonormal basis of the span of independent rows, in the same order."""
    if not len(rows):
        return rows
    columns, triangle = torch.linalg.qr(rows.t())
    basis: Tensor = (columns * triangle.diagonal().sign()).t()
    return basis.contiguous()


def completed(rows: Tensor, filler: Tensor, basis: Tensor) -> Tensor:
    """Return rows with further orthonormal ones, as many in all as the filler has.

    The further ones lie in the span of the last rows of the filler, outside of the rows and the
    basis. Where no direction is left, rows are zero.

    Args:
        rows: ``(n, d)``, orthonormal and orthogonal to the basis.
        filler: ``(rank, d)`` with ``rank >= n``.
        basis: ``(k, d)``, orthonormal.
    """
    missing = len(filler) - len(rows)
    if not missing:
        return rows
    free = without(without(filler[-missing:].float(), basis), rows)
    further = top_directions(free, missing, scale=float(filler.float().norm()))
    further = orthonormal(without(without(further, basis), rows))
    zeros = rows.new_zeros(missing - len(further), filler.shape[1])
    return torch.cat([rows, further, zeros])


def _above_noise(values: Tensor, size: int, scale: float) -> Tensor:
    """Return which singular values or eigenvalues, largest first, exceed their rounding error."""
    largest = max(scale, float(values[0]) if len(values) else 0.0)
    return values > largest * size * torch.finfo(torch.float32).eps


def _signed(rows: Tensor) -> Tensor:
    """Return rows with a positive entry of the largest absolute value."""
    if not rows.numel():
        return rows
    largest = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True))  # (k, 1)
    return (rows * torch.where(largest < 0, -1.0, 1.0)).contiguous()
