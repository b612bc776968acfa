"""Zero-cost estimate of a unit's sensitivity to a task: the norm of its gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from dmole.transfer import to_device

Reduction = Literal["sum", "mean", "mean_batch_norm", "fisher"]
Combine = Literal["sum", "norm"]
AllReduce = Callable[[Tensor], Tensor]


def score_gradients(
    model: nn.Module,
    parameters: Mapping[str, Sequence[nn.Parameter]],
    batches: Iterable[Any],
    loss_fn: Callable[[Any], Tensor | Iterable[Tensor]],
    *,
    reduction: Reduction = "sum",
    combine: Combine = "sum",
    all_reduce: AllReduce | None = None,
) -> dict[str, float | None]:
    r"""Return the proxy score of each unit from forward and backward passes, without a step.

    .. math:: s^l = \sum_{\theta \in l} \Big\| \nabla_\theta \sum_b L(b) \Big\|_2

    Gradients are accumulated in float32, and each is freed as soon as it is read. Parameters
    outside the units get no gradients. All flags and gradients are restored at the end, also on
    error. The caller sets the model's train/eval mode.

    Args:
        model: The model; parameters outside the units are frozen during the pass.
        parameters: Parameters by unit name; no parameter is in two units.
        batches: Arguments of ``loss_fn``, one by one.
        loss_fn: Returns the scalar loss of a batch; or, for a batch too large for one pass, its
            summands. Each summand is differentiated before the next is computed.
        reduction: ``sum``: norm of the summed gradient (above); ``mean``: of the mean gradient;
            ``mean_batch_norm``: mean of the norms per batch; ``fisher``: mean of the squared
            norms per batch, the trace of the empirical Fisher matrix over batches.
        combine: ``sum`` adds the norms of a unit's tensors, as published, so a block scores lower
            if its query, key and value share one tensor. ``norm`` takes the norm over all tensors
            of the unit together, which does not depend on how they are split.
        all_reduce: Returns the sum of a tensor over all ranks. Every rank calls it for the same
            tensors in the same order. ``None`` on a single process.

    Returns:
        Score per unit; None (not 0) if no tensor of the unit received a gradient.

    Raises:
        ValueError: If a loss or gradient is not finite (names the batch), there is no batch or no
            parameter, a parameter is in two units, or ``reduction`` or ``combine`` is unknown or
            they do not fit together.

    Source:
        D-MoLE, 2025, https://arxiv.org/abs/2506.11672. The release accumulates in the dtype of
        the weights and on one rank only.
    """
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction must be one of {get_args(Reduction)}, got {reduction!r}")
    check_combine(combine, reduction)
    meter = _GradientMeter(parameters, summed=reduction in ("sum", "mean"))
    with _only_trainable(model, meter.tensors), meter.attached(), torch.enable_grad():
        for index, batch in enumerate(batches):
            losses = loss_fn(batch)
            meter.split = not isinstance(losses, Tensor)
            for loss in [losses] if isinstance(losses, Tensor) else losses:
                meter.losses.append(loss.detach())
                if loss.requires_grad:  # else it depends on no unit, and all scores stay None
                    loss.backward()
            del losses
            meter.close_batch(index)
    return meter.scores(reduction, combine, all_reduce)


def check_combine(combine: str, reduction: str) -> None:
    """Raise `ValueError` unless the tensors of a unit can be combined so under a reduction."""
    if combine not in get_args(Combine):
        raise ValueError(f"combine must be one of {get_args(Combine)}, got {combine!r}")
    if combine == "norm" and reduction == "mean_batch_norm":
        raise ValueError("combine 'norm' is not defined for reduction 'mean_batch_norm'")


class _GradientMeter:
    """Reads every gradient once, on arrival, and keeps only what the reduction needs."""

    def __init__(self, parameters: Mapping[str, Sequence[nn.Parameter]], summed: bool) -> None:
        self.units = list(parameters)
        self.tensors = [tensor for unit in self.units for tensor in parameters[unit]]
        self.owners = [unit for unit in self.units for _ in parameters[unit]]
        self.summed = summed
        self.split = False  # whether the current batch comes in parts
        self.batches = 0
        self.counts = [0] * len(self.tensors)
        self.kept: list[Tensor | None] = [None] * len(self.tensors)  # sum or (norms, squares)
        self.losses: list[Tensor] = []  # of the current batch
        self.fresh: dict[int, Tensor] = {}  # norms of the current batch
        self.parts: dict[int, Tensor] = {}  # sums of its gradients, if their norm is needed
        unit_of: dict[int, str] = {}
        for tensor, unit in zip(self.tensors, self.owners, strict=True):
            if id(tensor) in unit_of:
                raise ValueError(f"units {unit_of[id(tensor)]} and {unit} share a parameter")
            unit_of[id(tensor)] = unit
        if not self.tensors:
            raise ValueError("proxy score: there is no parameter to score")

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hook the parameters for the body of a ``with`` statement."""
        handles = []
        try:
            for index, tensor in enumerate(self.tensors):
                hook = self._reader(index)
                handle = tensor.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
                handles.append(handle)
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _reader(self, index: int) -> Callable[[Tensor], None]:
        def read(parameter: Tensor) -> None:
            assert parameter.grad is not None  # the hook runs right after accumulation
            gradient = parameter.grad.detach().float()
            parameter.grad = None
            if self.split and not self.summed:
                part = self.parts.get(index)
                self.parts[index] = gradient.clone() if part is None else part.add_(gradient)
            else:
                self._keep(index, gradient)

        return read

    def _keep(self, index: int, gradient: Tensor) -> None:
        """Add a gradient, or its norms, to the sums of a tensor."""
        norm = torch.linalg.vector_norm(gradient)  # scalar
        previous = self.fresh.get(index)
        # the sum is finite if all norms are
        self.fresh[index] = norm if previous is None else previous + norm
        self.counts[index] += 1
        new = gradient if self.summed else torch.stack((norm, norm.square()))
        kept = self.kept[index]
        if kept is None:
            self.kept[index] = new.clone()
        else:
            kept.add_(new)

    def close_batch(self, batch: int) -> None:
        """Count the batch; raise if its loss or one of its gradients is not finite.

        The host waits for the device once.
        """
        self.batches += 1
        for index, gradient in self.parts.items():
            self._keep(index, gradient)
        self.parts.clear()
        device = self.tensors[0].device
        values = [to_device(v.float(), device) for v in (*self.losses, *self.fresh.values())]
        if values and not bool(torch.isfinite(torch.stack(values)).all()):
            self._refuse(batch)
        self.losses.clear()
        self.fresh.clear()

    def _refuse(self, batch: int) -> None:
        """Raise for the first loss of a batch, or else the first gradient, that is not finite."""
        for loss in self.losses:
            if not torch.isfinite(loss):
                raise ValueError(f"proxy score: loss of batch {batch} is {loss.item()}")
        for index, norm in self.fresh.items():
            if not torch.isfinite(norm):
                raise ValueError(
                    f"proxy score: gradient of unit {self.owners[index]} in batch {batch} "
                    "is not finite"
                )

    def scores(
        self, reduction: Reduction, combine: Combine, all_reduce: AllReduce | None
    ) -> dict[str, float | None]:
        """Reduce over ranks and combine the tensors of each unit."""
        counts = torch.tensor([*self.counts, self.batches], dtype=torch.int64)  # (tensors + 1,)
        if all_reduce is not None:
            counts = all_reduce(counts.to(self.tensors[0].device)).cpu()
        *arrived, batches = counts.tolist()
        if batches == 0:
            raise ValueError("proxy score: there is no batch")
        result: dict[str, float | None] = dict.fromkeys(self.units)
        for index, unit in enumerate(self.owners):
            if arrived[index] == 0:
                continue
            kept = self._kept_or_zeros(index)
            kept = kept if all_reduce is None else all_reduce(kept)
            score, total = _reduce(kept, reduction, batches), result[unit] or 0.0
            # a squared norm, as in `fisher`, is a sum over tensors however they are split
            joint = combine == "norm" and reduction != "fisher"
            result[unit] = math.hypot(total, score) if joint else total + score
        return result

    def _kept_or_zeros(self, index: int) -> Tensor:
        kept = self.kept[index]
        if kept is not None:
            return kept
        tensor = self.tensors[index]  # another rank has a gradient for it, this one does not
        shape = tensor.shape if self.summed else torch.Size([2])
        return torch.zeros(shape, dtype=torch.float32, device=tensor.device)


def _reduce(kept: Tensor, reduction: Reduction, batches: int) -> float:
    if reduction == "sum":
        return float(torch.linalg.vector_norm(kept))
    if reduction == "mean":
        return float(torch.linalg.vector_norm(kept)) / batches
    return float(kept[0 if reduction == "mean_batch_norm" else 1]) / batches


@contextmanager
def _only_trainable(model: nn.Module, tensors: Sequence[nn.Parameter]) -> Iterator[None]:
    """Enable gradients for exactly these tensors; restore flags and gradients on exit."""
    everything = {id(tensor): tensor for tensor in (*model.parameters(), *tensors)}
    flags = {key: tensor.requires_grad for key, tensor in everything.items()}
    gradients = {id(tensor): tensor.grad for tensor in tensors}
    try:
        for tensor in everything.values():
            tensor.requires_grad_(id(tensor) in gradients)
        for tensor in tensors:
            tensor.grad = None
        yield
    finally:
        for key, tensor in everything.items():
            tensor.requires_grad_(flags[key])
            if key in gradients:
                tensor.grad = gradients[key]
