"""Small counts of the elements of a weight as planes of packed bits. Pure functions, no model."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def pack_counts(counts: Tensor) -> Tensor:
    """Return counts as planes of bits, the lowest bit first.

    Args:
        counts: Counts below 256, shape ``(N,)``, uint8.

    Returns:
        Packed bits of shape ``(planes, ceil(N / 8))``, uint8: as many planes as the largest count
        has bits, at least one.

    Example:
        >>> pack_counts(torch.tensor([1, 0, 2], dtype=torch.uint8)).tolist()
        [[128], [32]]
    """
    values = counts.numpy()
    planes = max(1, int(values.max(initial=0)).bit_length())
    bits = [np.packbits(values >> plane & 1) for plane in range(planes)]
    return torch.from_numpy(np.stack(bits))


def unpack_counts(packed: Tensor, size: int) -> Tensor:
    """Return the counts that :func:`pack_counts` has packed.

    Args:
        packed: Packed bits, shape ``(planes, ceil(size / 8))``, uint8.
        size: Number of counts.

    Raises:
        ValueError: If the shape does not fit the number of counts, or there are over 8 planes.
    """
    planes, bytes_of_plane = packed.shape
    if not 1 <= planes <= 8 or bytes_of_plane != math.ceil(size / 8):
        raise ValueError(
            f"expected 1 to 8 planes of {math.ceil(size / 8)} bytes, got {tuple(packed.shape)}"
        )
    counts = np.zeros(size, np.uint8)
    for plane, row in enumerate(packed.numpy()):
        counts |= np.unpackbits(row, count=size) << plane
    return torch.from_numpy(counts)
