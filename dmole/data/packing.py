"""Puts tensors into one storage, so that a worker passes them on at the cost of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dmole.data.shared_memory import has_room, warn_of_pipe

Buffer = Tensor | npt.NDArray[np.uint8]
_ALIGNMENT = 64  # bytes: a cache line, and more than any dtype needs
_SMALL = 2**19  # bytes; from about twice as many on, shared memory is faster than a pipe


class Slot(NamedTuple):
    """Where a tensor lies in a buffer.

    Args:
        dtype: Its dtype.
        shape: Its shape.
        start: Its first byte.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int


def pack(tensors: Sequence[Tensor]) -> tuple[Buffer, list[Slot]]:
    """Return a buffer of bytes that holds the values of all tensors, and where each lies.

    Args:
        tensors: Dense tensors on one device, at least one.

    Returns:
        Bytes of shape ``(n,)``, and a slot for each tensor. Few bytes are an array, which pickle
        writes into the pipe; shared memory for a tensor takes a millisecond to pass on. Where
        shared memory is short, many bytes are an array, too.
    """
    slots, size = [], 0
    for tensor in tensors:
        slots.append(Slot(tensor.dtype, tuple(tensor.shape), size))
        size += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
    buffer = torch.empty(size, dtype=torch.uint8, device=tensors[0].device)
    for tensor, place in zip(tensors, unpack(buffer, slots), strict=True):
        place.copy_(tensor)
    piped = buffer.device.type == "cpu" and (size <= _SMALL or not has_room(size))
    return buffer.numpy() if piped else buffer, slots


def unpack(buffer: Buffer, slots: Sequence[Slot]) -> list[Tensor]:
    """Return the tensors in a buffer, without a copy.

    They are no views of each other in the sense of autograd: a change of one leaves the others as
    they are, also those that were saved for a backward pass.

    Args:
        buffer: Bytes of shape ``(n,)``.
        slots: Where each tensor lies.
    """
    memory = torch.as_tensor(buffer)  # without a copy
    if len(memory) > _SMALL and not isinstance(buffer, Tensor):
        warn_of_pipe(len(memory))
    storage = memory.untyped_storage()
    tensors = []
    for dtype, shape, start in slots:
        tensor = torch.empty(0, dtype=dtype, device=memory.device)
        first = start // tensor.element_size()
        tensors.append(tensor.set_(storage, first, shape))  # type: ignore[call-overload]
    return tensors
