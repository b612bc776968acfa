"""One key per task, to which the embeddings of its samples point. Pure functions, no model."""

from __future__ import annotations

import torch
from torch import Tensor

from dmole.routing.preprocessing import normalize_rows


def fit_key(rows: Tensor) -> Tensor:
    r"""Return the direction nearest to all rows at once.

    .. math::
        \arg\min_{\|k\| = 1} \sum_n \left( 1 - \cos(x_n, k) \right)
        = \frac{m}{\|m\|}, \quad m = \sum_n \frac{x_n}{\|x_n\|}

    The sum is linear in a unit vector :math:`k`, so that the minimum needs no descent as long as
    the encoders are frozen.

    Args:
        rows: Embeddings of one task's samples, shape ``(N, D)``.

    Returns:
        Unit vector of shape ``(D,)``, float32; zero where all rows are zero.

    Raises:
        ValueError: If there are no rows or they are no matrix.

    Source:
        BranchLoRA, 2025, https://arxiv.org/abs/2506.02041, by secondary texts (its code is not
        public): keys trained for the loss above. The closed form is ours.

    Example:
        >>> fit_key(torch.tensor([[2.0, 0.0], [0.0, 5.0]]))
        tensor([0.7071, 0.7071])
    """
    if rows.ndim != 2 or not len(rows):
        raise ValueError(f"expected rows (N, D) with N >= 1, got {tuple(rows.shape)}")
    mean = normalize_rows(rows).double().mean(dim=0, keepdim=True)
    return normalize_rows(mean)[0]


def key_scores(rows: Tensor, keys: Tensor) -> Tensor:
    """Return the cosine of each row and each task's key.

    Args:
        rows: Embeddings of shape ``(B, D)``.
        keys: Shape ``(K, D)``, any lengths.

    Returns:
        Shape ``(B, K)`` in ``[-1, 1]``, float32; zero where a row or key is zero.

    Raises:
        ValueError: If the shapes do not fit together.

    Source:
        BranchLoRA, 2025, https://arxiv.org/abs/2506.02041, by secondary texts.

    Example:
        >>> key_scores(torch.tensor([[3.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        tensor([[1., 0.]])
    """
    if rows.ndim != 2 or keys.ndim != 2 or rows.shape[1] != keys.shape[1]:
        raise ValueError(
            f"expected rows (B, D) and keys (K, D), got {tuple(rows.shape)} and {tuple(keys.shape)}"
        )
    with torch.autocast(rows.device.type, enabled=False):
        return (normalize_rows(rows) @ normalize_rows(keys).T).clamp(-1, 1)
