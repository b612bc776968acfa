"""Zero-cost estimate of a unit's sensitivity to a task: the norm of its gradients."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar, get_args

import torch
from torch import Tensor, nn

from dmole.allocation.gradients import (
    GradientSource,
    ParameterSource,
    Scored,
    attached,
    make_source,
    only_trainable,
)
from dmole.allocation.meter import Combine, GradientMeter, Reduction, Slot, slots_of
from dmole.distributed import Ranks

T = TypeVar("T")


def score_gradients(
    model: nn.Module,
    parameters: Mapping[str, Sequence[Scored]],
    batches: Iterable[Any],
    loss_fn: Callable[[Any], Tensor | Iterable[Tensor]],
    *,
    reduction: Reduction = "sum",
    combine: Combine = "sum",
    passes: int = 1,
    ranks: Ranks | None = None,
) -> dict[str, float | None]:
    r"""Return the proxy score of each unit from forward and backward passes, without a step.

    .. math:: s^l = \sum_{\theta \in l} \Big\| \nabla_\theta \sum_b L(b) \Big\|_2

    Gradients are accumulated in float32, and each is freed as soon as it is read. Parameters
    outside the units get no gradients. All flags and gradients are restored at the end, also on
    error. The caller sets the model's train/eval mode.

    Several ranks score the same batches together: the gradients of a batch are those of the summed
    losses of all ranks. Each gradient is summed over the ranks as it arrives, and each rank keeps
    those of about ``1 / size`` of the entries.

    Args:
        model: The model; parameters outside the units are frozen during the pass.
        parameters: Parameters by unit name; none is in two units. A linear with a quantized
            weight stands for its weight and bias: their gradients are computed from its input and
            the gradient of its output.
        batches: Arguments of ``loss_fn``, one by one; iterated once per pass. With several ranks,
            each has its part of every batch.
        loss_fn: Returns the scalar loss of a batch; or, for a batch too large for one pass, its
            summands, ``()`` for none. Each summand is differentiated before the next is computed.
        reduction: ``sum``: norm of the summed gradient (above); ``mean``: of the mean gradient;
            ``mean_batch_norm``: mean of the norms per batch; ``fisher``: mean of the squared
            norms per batch, the trace of the empirical Fisher matrix over batches.
        combine: ``sum`` adds the norms of a unit's tensors, as published, so a block scores lower
            if its query, key and value share one tensor. ``norm`` takes the norm over all tensors
            of the unit together, which does not depend on how they are split.
        passes: Number of passes over the batches. Each keeps the gradients of a group of
            consecutive units, about ``1 / passes`` of the entries. The scores are the same.
        ranks: The ranks; None in a single process.

    Returns:
        Score per unit; None (not 0) if no tensor of the unit received a gradient.

    Raises:
        ValueError: If a loss or gradient is not finite (names the batch), there is no batch or no
            parameter, a parameter is in two units, the batches of several passes can be iterated
            only once, or ``reduction``, ``combine`` or ``passes`` is invalid.

    Source:
        D-MoLE, 2025, https://arxiv.org/abs/2506.11672. The release accumulates in the dtype of
        the weights and on one rank only.
    """
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction must be one of {get_args(Reduction)}, got {reduction!r}")
    check_combine(combine, reduction)
    if passes < 1 or (passes > 1 and isinstance(batches, Iterator)):
        raise ValueError(f"passes must be at least 1, and 1 for an iterator, got {passes}")
    sources = _make_sources(parameters)
    scored = [
        s.parameter for each in sources.values() for s in each if isinstance(s, ParameterSource)
    ]
    scores: dict[str, float | None] = {}
    with only_trainable(model, scored), torch.enable_grad():
        for group in group_units(sources, passes):
            one = _Pass(sources, group, reduction, ranks)
            scores |= one.run(batches, loss_fn, combine)
    return {unit: scores.get(unit) for unit in parameters}


def sum_gradients(
    model: nn.Module,
    weights: Mapping[str, Scored],
    batches: Iterable[Any],
    loss_fn: Callable[[Any], Tensor | Iterable[Tensor]],
    *,
    passes: int = 1,
    ranks: Ranks | None = None,
) -> Iterator[tuple[str, int, Tensor | None]]:
    """Yield the gradient of each weight, summed over the batches, in float32.

    The passes are those of :func:`score_gradients`; a group of weights is freed before the next.

    Args:
        model: See :func:`score_gradients`.
        weights: The weights by path, or linears with quantized weights.
        batches: See :func:`score_gradients`.
        loss_fn: See :func:`score_gradients`.
        passes: See :func:`score_gradients`.
        ranks: See :func:`score_gradients`.

    Yields:
        Path, index of the rank that holds the gradient, and the gradient; None on all other ranks,
        and if none arrived.

    Raises:
        ValueError: See :func:`score_gradients`.
    """
    sources = _make_sources({path: [weight] for path, weight in weights.items()})
    scored = [s.parameter for (s,) in sources.values() if isinstance(s, ParameterSource)]
    for group in group_units(sources, passes):
        one = _Pass(sources, group, "sum", ranks)
        with only_trainable(model, scored), torch.enable_grad():
            meter = one.accumulate(batches, loss_fn)
        first = {slot.unit: index for index, slot in reversed([*enumerate(meter.slots)])}
        for path in group:
            index = first[path]
            kept, meter.kept[index] = meter.kept[index], None
            yield path, meter.owner(index), kept


def check_combine(combine: str, reduction: str) -> None:
    """Raise `ValueError` unless the tensors of a unit can be combined so under a reduction."""
    if combine not in get_args(Combine):
        raise ValueError(f"combine must be one of {get_args(Combine)}, got {combine!r}")
    if combine == "norm" and reduction == "mean_batch_norm":
        raise ValueError("combine 'norm' is not defined for reduction 'mean_batch_norm'")


def _make_sources(parameters: Mapping[str, Sequence[Scored]]) -> dict[str, list[GradientSource]]:
    """Return the sources of the gradients by unit; refuse one that is in two units."""
    unit_of: dict[int, str] = {}
    for unit, several in parameters.items():
        for scored in several:
            if id(scored) in unit_of:
                raise ValueError(f"units {unit_of[id(scored)]} and {unit} share a parameter")
            unit_of[id(scored)] = unit
    if not unit_of:
        raise ValueError("proxy score: there is no parameter to score")
    return {unit: [make_source(s) for s in several] for unit, several in parameters.items()}


def group_units(sources: Mapping[str, Sequence[GradientSource]], count: int) -> Iterator[list[str]]:
    """Yield consecutive units in at most ``count`` groups of about as many entries."""
    sizes = {
        unit: sum(shape.numel() for source in several for shape in source.shapes)
        for unit, several in sources.items()
    }
    total, before = sum(sizes.values()), 0
    groups: dict[int, list[str]] = {}
    for unit, size in sizes.items():
        middle = before + size / 2  # a unit belongs to the group that holds most of it
        groups.setdefault(min(int(middle * count / total), count - 1), []).append(unit)
        before += size
    yield from (group for group in groups.values() if any(sizes[unit] for unit in group))


class _Pass:
    """One pass over the batches, which keeps the gradients of some units.

    The gradients of the others are computed, too, and dropped, so that the kernels and thus the
    scores do not depend on the number of passes.
    """

    def __init__(
        self,
        sources: Mapping[str, Sequence[GradientSource]],
        group: Collection[str],
        reduction: Reduction,
        ranks: Ranks | None,
    ) -> None:
        self._sources = [source for several in sources.values() for source in several]
        self._firsts: list[int | None] = []  # positions of the sources in the slots
        slots: list[Slot] = []
        for unit, several in sources.items():
            for source in several:
                self._firsts.append(len(slots) if unit in group else None)
                slots += slots_of(unit, source) if unit in group else []
        self._ranks = ranks
        self._meter = GradientMeter(slots, reduction, ranks)

    def run(
        self,
        batches: Iterable[Any],
        loss_fn: Callable[[Any], Tensor | Iterable[Tensor]],
        combine: Combine,
    ) -> dict[str, float | None]:
        """Return the scores of the units, and free the gradients."""
        self.accumulate(batches, loss_fn)
        scores = self._meter.scores(combine)
        self._meter.kept.clear()  # the next pass begins before the garbage collector runs
        return scores

    def accumulate(
        self, batches: Iterable[Any], loss_fn: Callable[[Any], Tensor | Iterable[Tensor]]
    ) -> GradientMeter:
        """Read the gradients of all batches, and return what is kept of them."""
        meter = self._meter
        receivers = [None if f is None else partial(_receive, meter, f) for f in self._firsts]
        with attached(zip(self._sources, receivers, strict=True)):
            for index, batch in enumerate(in_step(batches, self._ranks)):
                losses = () if batch is None else loss_fn(batch)
                several = not isinstance(losses, Tensor) and losses != ()
                meter.split = several if self._ranks is None else self._ranks.any(several)
                losses = [losses] if isinstance(losses, Tensor) else losses
                for loss in in_step(losses, self._ranks):
                    self._differentiate(loss)
                meter.close_batch(index)
        return meter

    def _differentiate(self, loss: Tensor | None) -> None:
        if loss is not None:
            self._meter.losses.append(loss.detach())
            if loss.requires_grad:  # else it depends on no unit, and all scores stay None
                for source in self._sources:
                    source.begin_backward()
                loss.backward()  # type: ignore[no-untyped-call]
                for source in self._sources:
                    source.end_backward()
        self._meter.close_backward()


def _receive(meter: GradientMeter, first: int, position: int, gradient: Tensor) -> None:
    meter.read(first + position, gradient)


def in_step(items: Iterable[T], ranks: Ranks | None) -> Iterator[T | None]:
    """Yield the items of this rank, then None for as long as another rank has some.

    Args:
        items: The items of this rank; none of them is None.
        ranks: The ranks; None in a single process.
    """
    if ranks is None:
        yield from items
        return
    own = iter(items)
    while True:
        item = next(own, None)
        if not ranks.any(item is not None):
            return
        yield item
