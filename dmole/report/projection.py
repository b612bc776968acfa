"""Projection of embeddings to the plane: t-SNE, or PCA where that is not possible."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

FEW = 50
"""Fewest samples with which neighborhoods, and so t-SNE, mean something."""

_WIDE = 50  # dimensions that t-SNE reads, those of largest variance
_PERPLEXITY = 30.0
_SEED = 0


def why_not_tsne(samples: int) -> str:
    """Return why samples are projected by PCA; empty if t-SNE is possible."""
    if samples < FEW:
        return f"t-SNE needs at least {FEW} samples"
    if find_spec("sklearn") is None:
        return "t-SNE needs scikit-learn: pip install 'dmole[report]'"
    return ""


def project(rows: Array) -> Array:
    """Return rows ``(N, D)`` as points ``(N, 2)``: by t-SNE, by PCA if :func:`why_not_tsne`.

    Equal rows give equal points.
    """
    if why_not_tsne(len(rows)):
        return principal(rows, 2)
    from sklearn.manifold import TSNE

    perplexity = min(_PERPLEXITY, (len(rows) - 1) / 4)
    tsne = TSNE(perplexity=perplexity, init="pca", random_state=_SEED)
    points: Array = tsne.fit_transform(principal(rows, _WIDE)).astype(np.float64)
    return points


def principal(rows: Array, count: int) -> Array:
    """Return the coordinates of rows ``(N, D)`` along their directions of largest variance.

    Args:
        rows: Shape ``(N, D)``.
        count: Number of directions; coordinates beyond N or D are 0.

    Returns:
        Shape ``(N, count)``, the direction of largest variance first.
    """
    centered = rows - rows.mean(axis=0)
    left, sizes, _ = np.linalg.svd(centered, full_matrices=False)
    found = (left * sizes)[:, :count]  # (N, at most count)
    return np.pad(found, ((0, 0), (0, count - found.shape[1])))
