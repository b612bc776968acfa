"""The device that the weights of a base model are loaded on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_DEVICE: ContextVar[torch.device | None] = ContextVar("loading device", default=None)


@contextmanager
def loading_on(device: str | torch.device | None) -> Iterator[None]:
    """Load base models on a device in the body of a ``with`` statement, not through host memory.

    Args:
        device: The device; None decides as outside of the body: plain weights are loaded into host
            memory, quantized ones on the accelerator of this process.

    Example:
        >>> from dmole.models.placement import loading_device, loading_on
        >>> with loading_on("cuda:1"):
        ...     loading_device(quantized=False)
        device(type='cuda', index=1)
    """
    token = _DEVICE.set(None if device is None else torch.device(device))
    try:
        yield
    finally:
        _DEVICE.reset(token)


def loading_device(*, quantized: bool) -> torch.device | None:
    """Return the device to load weights on; None for the default of transformers.

    By default transformers loads plain weights into host memory and quantized ones on the current
    accelerator, which is the first one in every process until a trainer has set another.

    Args:
        quantized: Whether the weights are quantized, which is done on their device.
    """
    device = _DEVICE.get()
    if quantized:
        return device or _accelerator_of_process()
    return None if device is None or device.type == "cpu" else device


def _accelerator_of_process() -> torch.device | None:
    """Return the accelerator of this process by its rank on the machine; None without one."""
    available = torch.accelerator.is_available()
    kind = torch.accelerator.current_accelerator() if available else None
    if kind is None:
        return None
    rank = int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)
    return torch.device(kind.type, rank % torch.accelerator.device_count())
