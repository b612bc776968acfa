"""Blurred boundaries: a stage draws part of its samples from the tasks before and after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dmole.streams.draws import Draw, Inventory, Part, random_order, walk


@dataclass(frozen=True)
class Span:
    """A span of a task's samples in their random order, which repeats cyclically.

    Args:
        task: Index of the task.
        start: Start of the span.
        count: Length of the span.
    """

    task: int
    start: int
    count: int


@dataclass(frozen=True)
class Blur(Draw):
    """A task with some of its samples replaced by samples of its neighbors.

    Args:
        order: All tasks, in the order of learning.
        beta: Share of foreign samples, in [0, 1).
        seed: Seed of the draw; ``None`` uses the seed of the data.
    """

    order: tuple[str, ...]
    beta: float
    seed: int | None

    def arriving(self, tasks: Sequence[str], data: Inventory, seed: int) -> list[Part]:
        """Return the samples of the tasks and of their neighbors; their number is unchanged."""
        draw_seed = seed if self.seed is None else self.seed
        counts = [data.train_size(name) * data.repeat(name) for name in self.order]
        spans = blurred(counts, self.beta)
        parts: list[Part] = []
        for name in tasks:
            stage = spans[self.order.index(name)]
            if len(stage) > 1:
                parts += [self._part(span, data, draw_seed) for span in stage]
            else:  # without foreign samples: the clean stage, samples in the same order
                parts += super().arriving([name], data, seed)
        return parts

    def _part(self, span: Span, data: Inventory, seed: int) -> Part:
        name = self.order[span.task]
        order = random_order(data.train_size(name), seed, "blur", name)
        return Part(name, walk(order, span.start, span.count))


def blurred(counts: Sequence[int], beta: float) -> list[list[Span]]:
    r"""Return the spans of each stage: of its task, then of the tasks before and after.

    Stage :math:`t` of :math:`n_t` samples has :math:`k_t = \beta n_t` foreign ones, half of them
    from each neighbor (an odd one from the task before). The first and the last stage take all of
    them from their only neighbor. A stage takes the samples that the neighbor's stage leaves out,
    as far as these suffice, so with tasks of equal size hardly any sample occurs twice.

    Args:
        counts: Samples of each task in an epoch, in the order of learning.
        beta: Share of foreign samples, in [0, 1).

    Returns:
        The non-empty spans of each stage.

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
        if k > after[i]:  # after the span that the stage two before takes
            taken = after[i - 2] if i > 1 else 0
            spans.append(Span(i - 1, rest[i - 1] + taken, k - after[i]))
        if after[i]:
            spans.append(Span(i + 1, rest[i + 1], after[i]))
        stages.append(spans)
    return stages
