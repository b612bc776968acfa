"""Copies from the host to a device that do not wait."""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCKING = ("cpu", "mps")
"""Devices to which a copy has to wait, as in Lightning."""


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device; the host does not wait for a copy to an accelerator.

    Args:
        tensor: Any tensor; one in host memory must not be changed afterward.
        device: The device.
    """
    if tensor.device == device or device.type in _BLOCKING:
        return tensor.to(device)
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()  # a copy from pageable memory waits for the device
    return tensor.to(device, non_blocking=True)
