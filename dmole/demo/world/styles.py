"""Ways to fill a shape. Only "solid" is in the pretraining; the others are new to the eye."""

from __future__ import annotations

import functools

import numpy as np

from dmole.demo.world.world import Mask, shape_mask

FILLS = ("solid", "hollow", "striped", "dotted")
_RIM = 5  # pixels of the square window whose minimum leaves a rim of two pixels
_STRIPE = 2


@functools.cache
def filled_mask(label: int, size: int, fill: str) -> Mask:
    """Return the coverage in [0, 1] of a shape in one of `FILLS`, of shape ``(size, size)``.

    Raises:
        ValueError: If the fill is unknown.
    """
    if fill not in FILLS:
        raise ValueError(f"unknown fill {fill!r}; known are {', '.join(FILLS)}")
    mask = shape_mask(label, size)
    if fill == "solid":
        return mask
    inner = _eroded(mask)
    if fill == "hollow":
        return mask - inner
    rows, columns = np.indices(mask.shape) // _STRIPE
    gap = rows % 2 == 1 if fill == "striped" else (rows % 2 == 1) & (columns % 2 == 1)
    return np.where(gap, np.float32(0), mask)


def _eroded(mask: Mask) -> Mask:
    """The part of a mask at least two pixels from its rim."""
    padded = np.pad(mask, _RIM // 2)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (_RIM, _RIM))
    eroded: Mask = windows.min((-1, -2))
    return eroded
