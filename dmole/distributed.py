"""Collective operations that Lightning does not wrap; each is a no-op in a single process."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def is_distributed() -> bool:
    """Return whether several processes work on this run."""
    return in_process_group() and dist.get_world_size() > 1


def in_process_group() -> bool:
    """Return whether this process is in a group, with others or, as under ``ddp``, alone."""
    return dist.is_available() and dist.is_initialized()


def gather_objects(value: T) -> list[T]:
    """Return every rank's value, in the order of the ranks."""
    if not is_distributed():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Return the sum of a tensor over all ranks."""
    if is_distributed():
        dist.all_reduce(tensor)
    return tensor


def max_over_ranks(value: int, device: torch.device) -> int:
    """Return the largest value of all ranks.

    Args:
        value: Value of this rank.
        device: Device on which the ranks exchange tensors.
    """
    if not is_distributed():
        return value
    box = torch.tensor(value, device=device)
    dist.all_reduce(box, dist.ReduceOp.MAX)
    return int(box)


def broadcast(value: T, owner: int = 0) -> T:
    """Return the value of one rank, by default the first, on every rank."""
    if not is_distributed():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=owner)
    return box[0]


class Ranks:
    """The processes of a run, for sums that are spread over them.

    Args:
        device: Device on which the ranks exchange flags.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    @property
    def index(self) -> int:
        """Rank of this process."""
        return dist.get_rank()

    @property
    def size(self) -> int:
        """Number of ranks."""
        return dist.get_world_size()

    def any(self, here: bool) -> bool:
        """Return whether something holds on some rank."""
        return bool(max_over_ranks(int(here), self._device))

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over all ranks, on all of them."""
        return sum_over_ranks(tensor)

    def sum_at(self, owner: int, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over all ranks on the owner; others get an undefined one."""
        tensor = tensor.contiguous()
        dist.reduce(tensor, dst=owner)
        return tensor


def connected_ranks(device: torch.device) -> Ranks | None:
    """Return the ranks of this run; None in a single process.

    Args:
        device: Device on which the ranks exchange flags.
    """
    return Ranks(device) if is_distributed() else None
