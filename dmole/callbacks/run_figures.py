"""The figures of a run: which there are, what they show, and after which stages they are drawn."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from dmole.callbacks.evaluation_matrix import EvaluationMatrix
from dmole.callbacks.expert_allocation import ExpertAllocation
from dmole.report import figures
from dmole.routing import AutoencoderRouter
from dmole.storage.versions import newest_versions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dmole.module import ContinualModule
    from dmole.run.state import SequenceState

Drawing = tuple[str, Callable[[], "Figure"]]
"""Name of a figure and the function that draws it."""

Ratios = dict[str, tuple[list[float], list[float]]]
"""By expert: losses of the samples of its own tasks and of others, divided by its threshold."""


def drawn_stages(stages: int, most: int) -> set[int]:
    """Return the stages after which figures are drawn: all if they are few, else evenly spaced.

    Args:
        stages: Index of the last stage, which is always drawn; the first is 0.
        most: Largest number of stages to draw.

    Example:
        >>> sorted(drawn_stages(50, 5)), sorted(drawn_stages(3, 5))
        ([10, 20, 30, 40, 50], [0, 1, 2, 3])
    """
    if stages < most:
        return set(range(stages + 1))
    return {stages - index * stages // most for index in range(most)}


def stage_drawings(state: SequenceState) -> Iterator[Drawing]:
    """Yield the figures that change with every stage, as they are after the current one."""
    table, names = state.callback_of(EvaluationMatrix), state.data.column_names
    last = table.evaluated[-1]
    matrix, tasks_of = table.matrix[: last + 1].copy(), state.learned_columns()
    limit = state.data.eval_limit
    title = "Score after each stage: a column that fades is a task forgotten"
    title += f" (eval_limit {limit})" if limit else ""
    title += f" (evaluate: {state.evaluates})" if state.evaluates != "all" else ""
    yield (
        "evaluation_matrix",
        lambda: figures.matrix_heatmap(matrix, names, title, tasks_of),
    )
    counts: dict[str, dict[str, int]] = defaultdict(dict)
    for at, task, gate_set, count in table.routing:
        if at == last:
            counts[task][gate_set] = count
    if last:
        used = f"Experts used after stage {last}: the diagonal is the task's own"
        yield "expert_activation", lambda: figures.activation_heatmap(counts, used)


def final_drawings(state: SequenceState, module: ContinualModule) -> Iterator[Drawing]:
    """Yield all figures that have something to show at the end of a run."""
    yield from stage_drawings(state)
    rows = state.callback_of(ExpertAllocation).rows()
    if rows:
        placed = "Units that hold each task's expert, by proxy score"
        yield "allocation", lambda: figures.allocation_heatmap(rows, placed)
    ratios = loss_ratios(state, module)
    if ratios:
        told = "Autoencoder losses: samples left of 1 are accepted"
        yield "autoencoder_losses", lambda: figures.acceptance_figure(ratios, told)


def loss_ratios(state: SequenceState, module: ContinualModule) -> Ratios:
    """Return the losses of own and other test samples by the threshold of each expert.

    All versions of an expert own the tasks of each of them. Empty unless the router has
    autoencoders.
    """
    router = getattr(module.router, "router", module.router)  # inside CommonExpertRouter
    if not isinstance(router, AutoencoderRouter):
        return {}
    table = state.callback_of(EvaluationMatrix)
    newest = newest_versions((stage.expert for stage in state.plan), router.updates)
    own: dict[str, set[str]] = defaultdict(set)  # by the newest version of an expert
    for stage in state.plan:
        own[newest[stage.expert]].update(stage.tasks)
    found = {}
    for expert in (name for name in table.losses if name in router.fitted):  # not the common one
        by_task, threshold = table.losses[expert], router.threshold(expert)
        if not 0.0 < threshold < math.inf:
            continue  # scaled to accept nothing, or everything
        parts: tuple[list[float], list[float]] = ([], [])
        for task, losses in by_task.items():
            parts[task not in own[newest[expert]]].extend(loss / threshold for loss in losses)
        found[expert] = parts
    return found
