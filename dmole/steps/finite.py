"""Finds values that are not finite before they reach an expert, on all ranks together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dmole.distributed import gather_objects, sum_over_ranks
from dmole.transfer import to_device

_SHOWN = 8
"""Samples that a message names."""


class NonFiniteError(ValueError):
    """A value of the training is not finite."""


def overflows(tensors: Iterable[Tensor]) -> Tensor:
    """Return whether one of the tensors is not finite, or the sum of their squares is not.

    Adam's second moment and the norm of gradient clipping are such sums: both lose a step in
    which they overflow, without a word.

    Args:
        tensors: Any shapes, on one device.

    Returns:
        1.0 or 0.0, a scalar on the device of the tensors.
    """
    floating = [tensor.detach() for tensor in tensors if tensor.is_floating_point()]
    if not floating:
        return torch.zeros(())
    norms = torch._foreach_norm([tensor.float() for tensor in floating])
    return (~torch.isfinite(torch.stack(norms).norm())).float()


def not_finite(tensors: Iterable[Tensor]) -> Tensor:
    """Return whether one of the tensors holds a NaN or an infinity, 1.0 or 0.0, a scalar."""
    floating = [tensor.detach() for tensor in tensors if tensor.is_floating_point()]
    if not floating:
        return torch.zeros(())
    norms = torch._foreach_norm(floating, float("inf"))  # the largest absolute value; NaN is kept
    return (~torch.isfinite(torch.stack([norm.float() for norm in norms])).all()).float()


def describe(named: Mapping[str, Tensor | None]) -> str:
    """Return the name of the first tensor that is not finite and its first such value; or ``""``.

    If all are finite but the sum of their squares is not, the largest one is named.
    """
    largest, where = 0.0, ""
    for name, tensor in named.items():
        if tensor is None or not tensor.numel():
            continue
        tensor = tensor.detach()
        bad = ~torch.isfinite(tensor)
        if bad.any():
            return f"{name} is {float(tensor[bad].flatten()[0])}"
        if (size := float(tensor.abs().max())) > largest:
            largest, where = size, f"{name} is as large as {size:.3g}, and its square overflows"
    return where if largest > 1e18 else ""


def any_not_finite(scalars: Iterable[Tensor]) -> Tensor:
    """Return whether one of some scalars is not finite, 1.0 or 0.0, a scalar."""
    values = [scalar.detach().float().reshape(()) for scalar in scalars]
    if not values:
        return torch.zeros(())
    return (~torch.isfinite(torch.stack(values)).all()).float()


def on_any_rank(flags: Sequence[Tensor], device: torch.device) -> list[bool]:
    """Return which flags are set on any rank. All ranks must call it; the host waits once.

    Args:
        flags: Scalars 1.0 or 0.0, on the device or on the host.
        device: Device on which the ranks exchange tensors.
    """
    values = torch.stack([to_device(flag, device) for flag in flags])
    return [value > 0 for value in sum_over_ranks(values).tolist()]


def first_reason(reason: str) -> str:
    """Return the reason of the first rank that has one, with its number if there are several."""
    reasons = gather_objects(reason)
    for rank, text in enumerate(reasons):
        if text:
            return text if len(reasons) == 1 else f"{text} on rank {rank}"
    return "a value is not finite"


def sample_list(keys: Iterable[str]) -> str:
    """Return the samples of all ranks as a text that names at most eight."""
    every = [key for rank in gather_objects(list(keys)) for key in rank]
    more = f" and {len(every) - _SHOWN} more" if len(every) > _SHOWN else ""
    return ", ".join(every[:_SHOWN]) + more


def optimizer_tensors(optimizer: Any) -> dict[str, Tensor]:
    """Return the state of an optimizer by position of its parameter and name."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return {
        f"{index}/{name}": value
        for index, parameter in enumerate(parameters)
        for name, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }
