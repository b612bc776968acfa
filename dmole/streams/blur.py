"""Blurred boundaries: a stage draws part of its samples from the tasks before and after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dmole.streams.draws import Draw, Inventory, Part, random_order, walk


@dataclass(frozen=True)
class Span:
    """A piece of a task's samples in their random order, which begins anew where it ends.

    Args:
        task: Position of the task.
        start: Where the piece begins.
        count: Its length.
    """

    task: int
    start: int
    count: int


@dataclass(frozen=True)
class Blur(Draw):
    """A task with some of its samples exchanged for samples of its neighbors.

    Args:
        order: All tasks, in the order they are learned.
        beta: Share of foreign samples, in [0, 1).
        seed: Seed of the draw; ``None`` takes that of the data.
    """

    order: tuple[str, ...]
    beta: float
    seed: int | None

    def arriving(self, tasks: Sequence[str], data: Inventory, seed: int) -> list[Part]:
        """Return the samples of the tasks and of their neighbors; their number is unchanged."""
        own_seed = seed if self.seed is None else self.seed
        counts = [data.train_size(name) * data.repeat(name) for name in self.order]
        spans = blurred(counts, self.beta)
        parts: list[Part] = []
        for name in tasks:
            own, *foreign = spans[self.order.index(name)]
            if foreign:
                parts += [self._part(span, data, own_seed) for span in (own, *foreign)]
            else:  # the clean stage, its samples in the same order
                parts += super().arriving([name], data, seed)
        return parts

    def _part(self, span: Span, data: Inventory, seed: int) -> Part:
        name = self.order[span.task]
        order = random_order(data.train_size(name), seed, "blur", name)
        return Part(name, walk(order, span.start, span.count))


def blurred(counts: Sequence[int], beta: float) -> list[list[Span]]:
    r"""Return what each stage draws: of its own task first, then of the one before and after.

    Stage :math:`t` of :math:`n_t` samples has :math:`k_t = \beta n_t` foreign ones, half of them
    from each neighbor (an odd one from the task before); the first and the last stage take all
    from their only neighbor. What a neighbor is taken from is what its own stage leaves out, as
    far as that suffices, so with tasks of one size hardly a sample comes twice.

    Args:
        counts: Samples of each task in an epoch, in the order they are learned.
        beta: Share of foreign samples, in [0, 1).

    Returns:
        For each stage its pieces, those without a sample left out.

    Example:
        >>> [[(s.task, s.start, s.count) for s in stage] for stage in blurred([10, 10], 0.2)]
        [[(0, 0, 8), (1, 8, 2)], [(1, 0, 8), (0, 8, 2)]]
    """
    last = len(counts) - 1
    foreign = [round(beta * count) if last else 0 for count in counts]
    after = [0 if i == last else k if i == 0 else k // 2 for i, k in enumerate(foreign)]
    rest = [count - k for count, k in zip(counts, foreign, strict=True)]
    stages = []
    for i, k in enumerate(foreign):
        spans = [Span(i, 0, rest[i])]
        if k > after[i]:  # behind the piece that the stage two before has taken
            taken = after[i - 2] if i > 1 else 0
            spans.append(Span(i - 1, rest[i - 1] + taken, k - after[i]))
        if after[i]:
            spans.append(Span(i + 1, rest[i + 1], after[i]))
        stages.append(spans)
    return stages
