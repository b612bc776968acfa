"""Preprocessing of embeddings for the autoencoders, and summaries of losses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

QUANTILES = (0.10, 0.25, 0.50, 0.75, 0.90, 0.95, 0.99)

ROUNDING = 1e-5
"""Error of an embedding in float32, relative to its length."""


def normalize_rows(rows: Tensor, eps: float = 1e-12) -> Tensor:
    """Return rows of unit length, float32; a zero row stays zero.

    Lengths are computed in float64, so that their rounding does not depend on the other rows.

    Args:
        rows: Shape ``(N, D)``.
        eps: Minimum length to divide by.
    """
    rows = rows.double()
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)  # (N, 1)
    return (rows / lengths.clamp_min(eps)).float()


@dataclass(frozen=True)
class Preprocessor:
    """L2 normalization, then standardization with fixed statistics.

    Args:
        mean: Mean per dimension ``(D,)``, or None for no standardization.
        std: Standard deviation per dimension ``(D,)``, positive.
    """

    mean: Tensor | None = None
    std: Tensor | None = None

    @classmethod
    def fit(cls, rows: Tensor, floor: float = 1.0) -> Preprocessor:
        """Compute the statistics of the first task's embeddings.

        A dimension that varies little there, such as those of the text under a constant prompt, is
        divided by the typical deviation, the root mean square over the dimensions. Its variation in
        a later task then counts as much as that of other dimensions. Divided by its own deviation
        it would dominate the loss of all later tasks.

        Args:
            rows: Shape ``(N, D)``.
            floor: Minimum deviation of a dimension, relative to the typical one.
        """
        unit = normalize_rows(rows).double()
        std = unit.std(dim=0, unbiased=False)  # (D,)
        typical = std.square().mean().sqrt()
        least = floor * float(typical) if typical > 0 else 1.0
        return cls(unit.mean(dim=0).float().cpu(), std.clamp_min(least).float().cpu())

    def rounding_loss(self, width: int) -> float:
        """Return the squared error per dimension that rounding of the embeddings can cause.

        The numbers of a sample's embedding depend on the other samples of its batch by up to
        about 1e-5 of its length in float32, because the base model adds in another order.

        Args:
            width: Dimensions ``D`` of an embedding.
        """
        variance = ROUNDING**2 / width
        return variance if self.std is None else float((variance / self.std.double() ** 2).mean())

    def __call__(self, rows: Tensor) -> Tensor:
        """Return the preprocessed embeddings, ``(N, D)``, float32."""
        unit = normalize_rows(rows)
        if self.mean is None or self.std is None:
            return unit
        return (unit - self.mean.to(unit.device)) / self.std.to(unit.device)


def quantile_table(losses: Tensor) -> dict[str, float]:
    """Return the distribution of losses: min, Q10 to Q99, max, mean and std (unbiased).

    Args:
        losses: Shape ``(N,)``, not empty. Quantiles are interpolated linearly.

    Raises:
        ValueError: If there is no loss.
    """
    if losses.numel() == 0:
        raise ValueError("there is no loss to summarize")
    table = {"min": losses.min().item()}
    for q in QUANTILES:
        table[f"Q{round(100 * q)}"] = quantile(losses, q)
    table |= {"max": losses.max().item(), "mean": losses.mean().item()}
    if losses.numel() > 1:  # one value has no unbiased deviation
        table["std"] = losses.std().item()
    return table


def quantile(losses: Tensor, q: float) -> float:
    """Return the linearly interpolated quantile of any number of losses ``(N,)``."""
    ordered = losses.double().sort().values  # torch.quantile refuses more than 2**24 values
    position = q * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return float(ordered[low] + (position - low) * (ordered[high] - ordered[low]))
