"""Collective operations that Lightning does not wrap; each is a no-op in a single process."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def is_distributed() -> bool:
    """Return whether several processes work on this run."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


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


def weigh_by_tokens(loss: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return a rank's share of the loss and the loss of the batches of all ranks.

    .. math:: L_r' = \frac{R\, n_r}{\sum_i n_i} L_r, \qquad
        \frac{1}{R} \sum_r L_r' = \frac{\sum_r n_r L_r}{\sum_r n_r}

    Distributed training averages the gradients of the shares, so the result is the gradient of
    the mean over the tokens of all ranks. In a single process both values equal the loss.

    Args:
        loss: Mean over the tokens of this rank, scalar; any finite number if it has none.
        tokens: Number of tokens of this rank, scalar.

    Returns:
        The share, with the graph of ``loss``, and the loss over all ranks, without a graph.
    """
    if not is_distributed():
        return loss, loss.detach()
    sums = torch.stack((loss.detach().float() * tokens, tokens.float()))
    weighted, count = sum_over_ranks(sums)
    return loss * (dist.get_world_size() * tokens / count), weighted / count


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


def broadcast(value: T) -> T:
    """Return rank 0's value on every rank."""
    if not is_distributed():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
