"""What the proxy pass keeps of the gradients, on one rank or spread over several."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn

import torch
from torch import Tensor

from dmole.allocation.gradients import GradientSource
from dmole.distributed import Ranks
from dmole.transfer import to_device

Reduction = Literal["sum", "mean", "mean_batch_norm", "fisher"]
Combine = Literal["sum", "norm"]


@dataclass(frozen=True)
class Slot:
    """A tensor whose gradients are read.

    Args:
        unit: The unit that it belongs to.
        shape: Its shape.
        device: Its device.
    """

    unit: str
    shape: torch.Size
    device: torch.device


def slots_of(unit: str, source: GradientSource) -> list[Slot]:
    """Return the tensors of a source as slots of a unit."""
    return [Slot(unit, shape, source.device) for shape in source.shapes]


class OwnedSums:
    """Sums every gradient over the ranks on arrival, each on the rank that keeps it.

    All ranks sum the same tensors in the same order, that of a backward pass through the model. A
    gradient that arrives early waits for those before it. One that never arrives, since no sample
    of the rank depends on the tensor, counts as zero.

    Args:
        ranks: The ranks.
        slots: The tensors, in the order of the model.
        keep: Takes position and sum on the owner.
    """

    def __init__(
        self, ranks: Ranks, slots: Sequence[Slot], keep: Callable[[int, Tensor], None]
    ) -> None:
        self._ranks = ranks
        self._slots = slots
        self._keep = keep
        self.owners = assign_owners([slot.shape.numel() for slot in slots], ranks.size)
        self._waiting: dict[int, Tensor] = {}
        self._left = len(slots)  # those below it are still to be summed

    def put(self, index: int, gradient: Tensor) -> None:
        """Sum a gradient if it is its turn, and those that waited for it."""
        self._waiting[index] = gradient.clone()  # a sum changes it
        while self._left and self._left - 1 in self._waiting:
            self._sum(self._waiting.pop(self._left - 1))

    def close(self) -> None:
        """Sum what is left of a backward pass, and begin the next one."""
        while self._left:
            gradient = self._waiting.pop(self._left - 1, None)
            if gradient is None:
                slot = self._slots[self._left - 1]
                gradient = torch.zeros(slot.shape, device=slot.device)
            self._sum(gradient)
        self._left = len(self._slots)

    def _sum(self, gradient: Tensor) -> None:
        self._left -= 1
        owner = self.owners[self._left]
        total = self._ranks.sum_at(owner, gradient)
        if owner == self._ranks.index:
            self._keep(self._left, total)


def assign_owners(sizes: Sequence[int], ranks: int) -> list[int]:
    """Return the rank that keeps each tensor, such that all ranks keep about as many entries."""
    owners, loads = [0] * len(sizes), [0] * ranks
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        owners[index] = loads.index(min(loads))
        loads[owners[index]] += sizes[index]
    return owners


class GradientMeter:
    """Reads every gradient once, on arrival, and keeps only what the reduction needs.

    Args:
        slots: The tensors whose gradients are kept.
        reduction: See :func:`~dmole.allocation.score_gradients`.
        ranks: The ranks; None in a single process.
    """

    def __init__(self, slots: Sequence[Slot], reduction: Reduction, ranks: Ranks | None) -> None:
        self.slots = slots
        self.reduction: Reduction = reduction
        self.summed = reduction in ("sum", "mean")
        self.split = False  # whether the current batch comes in several backward passes
        self.batches = 0
        self.counts = [0] * len(slots)  # gradients of this rank
        self.kept: list[Tensor | None] = [None] * len(slots)  # sum or (norms, squares)
        self.losses: list[Tensor] = []  # of the current batch
        self.fresh: dict[int, Tensor] = {}  # norms of the current batch
        self.parts: dict[int, Tensor] = {}  # sums of its gradients, if their norm is needed
        self.ranks = ranks
        self._sums = None if ranks is None else OwnedSums(ranks, slots, self._add)

    def owner(self, index: int) -> int:
        """Return the rank that keeps what is kept of a tensor."""
        return 0 if self._sums is None else self._sums.owners[index]

    def read(self, index: int, gradient: Tensor) -> None:
        """Take the gradient of a tensor in the current backward pass."""
        self.counts[index] += 1
        if self._sums is None:
            self._add(index, gradient)
        else:
            self._note(index, torch.linalg.vector_norm(gradient))  # the sum is finite if all are
            self._sums.put(index, gradient)

    def close_backward(self) -> None:
        """End a backward pass; all ranks call it, also those without a loss."""
        if self._sums is not None:
            self._sums.close()

    def _add(self, index: int, gradient: Tensor) -> None:
        """Add a gradient to what is kept of its tensor."""
        if self.split and not self.summed:
            part = self.parts.get(index)
            self.parts[index] = gradient.clone() if part is None else part.add_(gradient)
        else:
            self._keep(index, gradient)

    def _keep(self, index: int, gradient: Tensor) -> None:
        """Add a gradient, or its norms, to the sums of a tensor."""
        new = gradient
        if not self.summed or self._sums is None:
            norm = torch.linalg.vector_norm(gradient)  # scalar
            self._note(index, norm)
            new = gradient if self.summed else torch.stack((norm, norm.square()))
        kept = self.kept[index]
        if kept is None:
            self.kept[index] = new.clone()
        else:
            kept.add_(new)

    def _note(self, index: int, norm: Tensor) -> None:
        """Note a norm of the current batch; the sum is finite if all norms are."""
        previous = self.fresh.get(index)
        self.fresh[index] = norm if previous is None else previous + norm

    def close_batch(self, batch: int) -> None:
        """Count the batch; raise if its loss or one of its gradients is not finite.

        The host waits for the device once.
        """
        self.batches += 1
        for index, gradient in self.parts.items():
            self._keep(index, gradient)
        self.parts.clear()
        device = self.slots[0].device
        values = [to_device(v.float(), device) for v in (*self.losses, *self.fresh.values())]
        if values and not bool(torch.isfinite(torch.stack(values)).all()):
            self._refuse(batch)
        self.losses.clear()
        self.fresh.clear()

    def _refuse(self, batch: int) -> NoReturn:
        """Raise for the first loss of a batch, or else the first gradient, that is not finite."""
        for loss in self.losses:
            if not torch.isfinite(loss):
                raise ValueError(f"proxy score: loss of batch {batch} is {loss.item()}")
        index = next(index for index, norm in self.fresh.items() if not torch.isfinite(norm))
        raise ValueError(
            f"proxy score: gradient of unit {self.slots[index].unit} in batch {batch} is not finite"
        )

    def scores(self, combine: Combine) -> dict[str, float | None]:
        """Return the score of each unit: its tensors combined, over all ranks.

        Raises:
            ValueError: If there was no batch.
        """
        if self.batches == 0:
            raise ValueError("proxy score: there is no batch")
        device = self.slots[0].device
        counts = torch.tensor(self.counts, dtype=torch.int64)
        values = torch.tensor([self._score(kept) for kept in self.kept], dtype=torch.float64)
        if self.ranks is not None:  # each value is 0 on all ranks but its owner
            counts = self.ranks.sum(counts.to(device)).cpu()
            values = self.ranks.sum(values.to(device)).cpu()
        result: dict[str, float | None] = dict.fromkeys(slot.unit for slot in self.slots)
        joint = combine == "norm" and self.reduction != "fisher"
        for slot, count, score in zip(self.slots, counts.tolist(), values.tolist(), strict=True):
            if count:
                total = result[slot.unit] or 0.0
                # a squared norm, as in `fisher`, is a sum over tensors however they are split
                result[slot.unit] = math.hypot(total, score) if joint else total + score
        return result

    def _score(self, kept: Tensor | None) -> float:
        """Return the score of a tensor from what is kept of it."""
        if kept is None:
            return 0.0
        if self.summed:
            norm = float(torch.linalg.vector_norm(kept))
            return norm if self.reduction == "sum" else norm / self.batches
        return float(kept[0 if self.reduction == "mean_batch_norm" else 1]) / self.batches
