"""Gaussian likelihood of embeddings under tasks that share one covariance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dmole.routing.autoencoder import CHUNK, leading_directions

SHRINKAGE = 0.01
"""Share of the mean variance that is added to every direction of the pooled covariance."""


@dataclass(frozen=True)
class TaskMoments:
    """Mean and covariance of the embeddings of one task, float32 on the CPU.

    The covariance is ``factor.T @ factor + rest * I``: its leading principal components, and the
    mean variance of all others.

    Args:
        mean: Shape ``(D,)``.
        factor: Principal directions times the square root of their variance above ``rest``,
            shape ``(K, D)``.
        rest: Mean variance outside these directions, shape ``(1,)``.
    """

    mean: Tensor
    factor: Tensor
    rest: Tensor

    @classmethod
    def fit(cls, rows: Tensor, components: int) -> TaskMoments:
        """Return the moments of preprocessed embeddings ``(N, D)``; K is at most ``components``."""
        rows = rows.detach().double()
        samples, width = rows.shape
        count = max(1, min(components, samples - 1, width // 2))
        mean = rows.mean(dim=0)  # (D,)
        centered = rows - mean  # (N, D)
        directions = leading_directions(centered, count)  # (K, D)
        variances = (centered @ directions.T).square().mean(dim=0)  # (K,)
        total = centered.square().sum() / samples
        rest = (total - variances.sum()).clamp_min(0) / max(1, width - count)
        scale = (variances - rest).clamp_min(0).sqrt()  # (K,)
        factor = directions * scale[:, None]  # (K, D)
        return cls(mean.float().cpu(), factor.float().cpu(), rest.float().reshape(1).cpu())


class PooledGaussian:
    r"""Tasks as Gaussians with their own means and one covariance, the mean over the tasks.

    .. math:: d_i(z) = \tfrac{1}{D} (z - \mu_i)^\top \Sigma^{-1} (z - \mu_i), \quad
        \Sigma = \tfrac{1}{E} \sum_i \Sigma_i + \epsilon I

    The task of the smallest distance is the most likely one, as in linear discriminant analysis.
    A direction in which all tasks vary counts little, one in which only their means differ counts
    much. No sample of an earlier task is needed.

    Args:
        tasks: Moments of the ``E`` tasks.
        least: Least variance of a direction, that which rounding of the embeddings can cause.

    Raises:
        ValueError: If there are no tasks or they differ in width.

    Source:
        Streaming linear discriminant analysis, Hayes and Kanan 2020,
        https://arxiv.org/abs/1909.01520; the low-rank covariance and its shrinkage are ours.

    Example:
        >>> import torch
        >>> from dmole.routing.pooled import PooledGaussian, TaskMoments
        >>> rows = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
        >>> rows = rows * torch.tensor([9.0, 0.1, 0.1])  # both tasks vary along the first axis
        >>> shift = torch.tensor([0.0, 1.0, 0.0])  # and differ along the second
        >>> tasks = [TaskMoments.fit(rows, 1), TaskMoments.fit(rows + shift, 1)]
        >>> PooledGaussian(tasks).distances(torch.tensor([[30.0, 0.9, 0.0]])).argmin(dim=1)
        tensor([1])
    """

    def __init__(self, tasks: Sequence[TaskMoments], least: float = 1e-12) -> None:
        if len({len(task.mean) for task in tasks}) != 1:
            raise ValueError("there is no task, or the tasks differ in the width of embeddings")
        self._means = torch.stack([task.mean.double() for task in tasks])  # (E, D)
        self._factor = torch.cat([task.factor.double() for task in tasks]) / len(tasks) ** 0.5
        rest = float(torch.cat([task.rest.double() for task in tasks]).mean())
        width = self._means.shape[1]
        mean_variance = float(self._factor.square().sum()) / width + rest
        self._noise = max(rest + SHRINKAGE * mean_variance, least)
        gram = self._factor @ self._factor.T  # (R, R), R the sum of all K
        gram.diagonal().add_(self._noise)
        self._root = torch.linalg.cholesky(gram)

    @torch.no_grad()
    def distances(self, rows: Tensor) -> Tensor:
        """Return the squared Mahalanobis distance to each task's mean, per dimension.

        Args:
            rows: Preprocessed embeddings of shape ``(N, D)``.

        Returns:
            Shape ``(N, E)``, float32; about 1 for a typical sample of the task, less where the
            shrinkage adds variance.

        Raises:
            ValueError: If the rows and the tasks differ in width.
        """
        width = self._means.shape[1]
        if rows.ndim != 2 or rows.shape[1] != width:
            raise ValueError(f"expected embeddings (N, {width}), got {tuple(rows.shape)}")
        rows = rows.detach().to(device="cpu", dtype=torch.float64)
        with torch.autocast("cpu", enabled=False):
            return torch.cat([self._distances(chunk) for chunk in torch.split(rows, CHUNK)])

    def _distances(self, rows: Tensor) -> Tensor:
        # the inverse of noise * I + F.T @ F is (I - F.T @ inv(noise * I + F @ F.T) @ F) / noise
        total = _squared_distances(rows, self._means)  # (N, E)
        inside = _squared_distances(self._whitened(rows), self._whitened(self._means))  # (N, E)
        distances = (total - inside) / (self._noise * rows.shape[1])
        return distances.clamp_min(0).float()  # rounding may leave a small negative number

    def _whitened(self, rows: Tensor) -> Tensor:
        """Return rows ``(N, D)`` in the coordinates of the factor, ``(N, R)``."""
        projected = self._factor @ rows.T  # (R, N)
        solved: Tensor = torch.linalg.solve_triangular(self._root, projected, upper=False)
        return solved.T


def _squared_distances(rows: Tensor, others: Tensor) -> Tensor:
    """Return the squared distances between rows ``(N, D)`` and others ``(E, D)``, ``(N, E)``."""
    squares: Tensor = rows.square().sum(dim=1)[:, None] + others.square().sum(dim=1)
    return squares - 2 * rows @ others.T
