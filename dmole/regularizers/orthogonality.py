"""How far the rows of a new expert overlap those of the past ones. Pure functions, no model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize


def overlap(current: Tensor, past: Tensor) -> Tensor:
    r"""Return the summed size of all products of a row now learnt and a past row.

    .. math:: \sum_{a,b} \left| A_t A_{<t}^\top \right|_{ab}

    It grows with both ranks and the number of tasks: :func:`normalized_overlap` does not.

    Args:
        current: ``lora_a`` of the expert now learnt, shape ``(r, d)``.
        past: Rows of all past ``lora_a`` of the same layer, shape ``(R, d)``; no gradient.

    Returns:
        Scalar, at least float32; zero where there are no past rows.

    Raises:
        ValueError: If the shapes do not fit together.

    Source:
        O-LoRA, 2023, https://arxiv.org/abs/2310.14152 (authors' code; the paper squares).

    Example:
        >>> overlap(torch.eye(2, 3), torch.eye(2, 3)), overlap(torch.eye(3)[:1], torch.eye(3)[1:])
        (tensor(2.), tensor(0.))
    """
    return _products(current, past).abs().sum()


def normalized_overlap(current: Tensor, past: Sequence[Tensor]) -> Tensor:
    r"""Return the mean overlap with past experts, free of ranks, widths and sizes of entries.

    .. math:: \frac{1}{t-1} \sum_{i<t} \frac{1}{r} \big\| \hat A_t \hat A_i^\top \big\|_F^2

    with rows :math:`\hat a = a / \|a\|`. It is 0 for experts orthogonal to each other and 1
    where each past expert has orthogonal rows that span those of the current one. No expert
    with orthogonal rows exceeds 1; one whose ``r_i`` rows repeat one another may reach ``r_i``.

    Args:
        current: ``lora_a`` of the expert now learnt, shape ``(r, d)``.
        past: ``lora_a`` of each past expert of the same layer, shape ``(r_i, d)``; no gradient.

    Returns:
        Scalar, at least float32; zero where there are no past experts. Zero rows overlap nothing.

    Raises:
        ValueError: If the shapes do not fit together.

    Source:
        Ours, after the squared penalty of O-LoRA, 2023, https://arxiv.org/abs/2310.14152.

    Example:
        >>> normalized_overlap(3 * torch.eye(2, 3), [torch.eye(2, 3), torch.eye(3)[2:]])
        tensor(0.5000)
    """
    if not past:
        return _products(current, current[:0]).sum()
    rows = normalize(_widened(current), dim=-1)
    products = _products(rows, torch.cat([normalize(_widened(a), dim=-1) for a in past]))
    return products.square().sum() / (len(past) * current.shape[0])


def _products(current: Tensor, past: Tensor) -> Tensor:
    """Products of rows, ``(r, R)``, outside the low precision of mixed training."""
    if current.ndim != 2 or past.ndim != 2 or current.shape[1] != past.shape[1]:
        raise ValueError(
            f"expected current (r, d) and past (R, d), "
            f"got {tuple(current.shape)} and {tuple(past.shape)}"
        )
    with torch.autocast(current.device.type, enabled=False):
        return _widened(current) @ _widened(past.detach()).T


def _widened(rows: Tensor) -> Tensor:
    return rows.to(torch.promote_types(rows.dtype, torch.float32))
