"""The precision of a forward pass, by Lightning's names but without Lightning."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

_DTYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
_SHORT = {"bf16": "bf16-mixed", "16": "16-mixed", "32": "32-true", "None": "32-true"}


def autocast(precision: str | int | None, device: torch.device) -> AbstractContextManager[Any]:
    """Return the context of a forward pass.

    Args:
        precision: As of Lightning's trainer: ``32-true``, ``bf16-mixed``, ``16-mixed`` or a short
            form; None is ``32-true``.
        device: Device of the model.

    Raises:
        ValueError: If the precision is another one.
    """
    name = _SHORT.get(str(precision), str(precision))
    if name == "32-true":
        return nullcontext()
    if name not in _DTYPES:
        raise ValueError(f"precision must be 32-true, bf16-mixed or 16-mixed, got {precision!r}")
    dtype = torch.bfloat16 if device.type == "cpu" else _DTYPES[name]  # as Lightning does
    return torch.autocast(device.type, dtype=dtype)
