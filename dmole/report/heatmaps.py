"""Heatmaps: the evaluation matrix, the allocation and the routing."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from dmole.metrics.matrix import TaskOfStage
from dmole.report.labels import plain
from dmole.report.style import ACCENT, INK, MISSING, label_axes, new_figure

Array = npt.NDArray[np.float64]

MOST_ANNOTATED = 400
"""Grids with more cells show no numbers, because they would be too small to read."""

WIDEST, HIGHEST = 16.0, 14.0
"""Largest size of a figure in inches; the cells of a grid with many tasks become smaller."""

LABEL = 0.15
"""Inches that a label needs; narrower rows and columns are labeled in part."""

WRAPPED = 0.7
"""Inches of a column whose label is horizontal; labels of narrower ones are turned."""

MOST_MIXED = 12
"""Sets of several experts with a column of their own; the samples of rarer ones are in one."""

OTHER = "other"
"""Column of the rare sets."""


def matrix_heatmap(
    matrix: npt.ArrayLike,
    task_names: Sequence[str],
    title: str,
    task_of_stage: TaskOfStage | None = None,
) -> Figure:
    """Draw the evaluation matrix: one row per stage, one column per task.

    Cells of a task that the stage has just learned are framed; missing cells are gray.

    Args:
        matrix: Scores of shape ``(stages + 1, tasks)``, percent.
        task_names: Name of each column.
        title: Title of the figure.
        task_of_stage: Zero-based task or tasks of each stage; None means stage ``t`` learned the
            ``t``-th task.

    Raises:
        ValueError: If the numbers of names and columns differ.
    """
    scores = np.asarray(matrix, dtype=np.float64)
    if scores.ndim != 2 or scores.shape[1] != len(task_names):
        raise ValueError(f"matrix of shape {scores.shape} for {len(task_names)} tasks")
    stages = ["before training", *(f"after stage {t}" for t in range(1, len(scores)))]
    figure, cell = _figure((2.6, 0.95, len(task_names)), (1.5, 0.42, len(stages)))
    axes = figure.subplots()
    top = max(100.0, float(np.nanmax(scores, initial=0.0)))
    _grid(axes, scores, cell, (list(task_names), stages), (0.0, top), lambda score: f"{score:.1f}")
    learned = range(min(len(scores) - 1, len(task_names)))
    for row, entry in enumerate(learned if task_of_stage is None else task_of_stage, start=1):
        for column in [entry] if isinstance(entry, int) else entry:
            _frame(axes, row, column)
    label_axes(axes, title, "task evaluated  (framed: just learned)", "")
    _bar(figure, axes, "score (%)")
    return figure


def _frame(axes: Axes, row: int, column: int) -> None:
    frame = Rectangle((column - 0.48, row - 0.46), 0.96, 0.92, fill=False, edgecolor=ACCENT)
    frame.set(linewidth=1.8, zorder=3)  # above the grid lines
    axes.add_patch(frame)


def allocation_heatmap(rows: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """Draw the allocated units: one row for each unit, one column for each expert.

    The color is the unit's proxy score as a share of the highest in the column. A dot marks a
    selected unit.

    Args:
        rows: Rows of ``allocation.csv``: ``expert``, ``modality``, ``unit``, ``score`` and
            ``selected`` (0 or 1), strings or numbers.
        title: Title of the figure.

    Raises:
        ValueError: If there are no rows.
    """
    if not rows:
        raise ValueError("no allocation to draw")
    names = list(dict.fromkeys(str(row["expert"]) for row in rows))
    modality_of = {str(row["unit"]): str(row["modality"]) for row in rows}
    units = list(modality_of)
    scores = np.full((len(units), len(names)), math.nan)
    selected = []
    for row in rows:
        place = units.index(str(row["unit"])), names.index(str(row["expert"]))
        scores[place] = float(row["score"]) if str(row["score"]).strip() else math.nan
        if int(row["selected"]):
            selected.append(place)
    height = min(0.24, (HIGHEST - 1.6) / len(units))  # inches for each unit
    margin = 2.1 + 0.07 * max(map(len, units))  # inches for the labels beside the grid
    figure, cell = _figure((margin, 0.95, len(names)), (1.6, height, len(units)))
    axes = figure.subplots()
    _grid(axes, _share_of_highest(scores), cell, (names, units), (0.0, 1.0), None)
    size = min(height, cell[0])
    across, down = [x for _, x in selected], [y for y, _ in selected]
    (dots,) = axes.plot(across, down, "o", color=ACCENT, markeredgecolor="white")
    dots.set(markersize=max(29 * size, 3.0), markeredgewidth=4 * size)
    for y in range(1, len(units)):
        if modality_of[units[y]] != modality_of[units[y - 1]]:
            axes.axhline(y - 0.5, color=INK, linewidth=1.4)
    label_axes(axes, title, "expert  (dot: unit selected)", "unit")
    _bar(figure, axes, "proxy score, share of highest")
    return figure


def activation_heatmap(counts: Mapping[str, Mapping[str, int]], title: str) -> Figure:
    """Draw which experts answered: one row per true task, one column per gate set.

    Args:
        counts: Number of samples by true task and gate set (names joined by ``+``, or ``base``).
        title: Title of the figure.

    Raises:
        ValueError: If there are no tasks or no gate sets.
    """
    counts = _without_rare(counts)
    tasks = list(counts)
    gate_sets = _ordered_gate_sets(counts)
    if not tasks or not gate_sets:
        raise ValueError("no routing to draw")
    table = np.array([[float(counts[t].get(g, 0)) for g in gate_sets] for t in tasks])
    totals = table.sum(axis=1, keepdims=True)
    shares = 100.0 * np.divide(table, totals, out=np.full_like(table, math.nan), where=totals > 0)
    figure, cell = _figure((2.8, 0.95, len(gate_sets)), (1.7, 0.42, len(tasks)))
    axes = figure.subplots()
    _grid(axes, shares, cell, (gate_sets, tasks), (0.0, 100.0), lambda share: f"{share:.0f}")
    label_axes(axes, title, "experts used", "true task")
    _bar(figure, axes, "samples of the task (%)")
    return figure


def _ordered_gate_sets(counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Order columns: single experts in the order of the rows, mixed sets, the base model last."""
    names = dict.fromkeys(name for row in counts.values() for name in row)
    single = [task for task in counts if task in names]
    last = [name for name in (OTHER, "base") if name in names and name not in single]
    mixed = sorted(name for name in names if name not in counts and name not in last)
    return [*single, *mixed, *last]


def _without_rare(counts: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    """Return counts in which the rare sets of several experts are one, if there are many."""
    totals: Counter[str] = Counter()
    for row in counts.values():
        totals.update({name: count for name, count in row.items() if "+" in name})
    if len(totals) <= MOST_MIXED:
        return {task: dict(row) for task, row in counts.items()}
    rare_names = totals.keys() - {name for name, _ in totals.most_common(MOST_MIXED)}
    found: dict[str, dict[str, int]] = {}
    for task, row in counts.items():
        found[task] = {name: count for name, count in row.items() if name not in rare_names}
        rare = sum(row.values()) - sum(found[task].values())
        found[task] |= {OTHER: found[task].get(OTHER, 0) + rare} if rare else {}
    return found


Cell = tuple[float, float]
"""Width and height of a cell in inches."""

Side = tuple[float, float, int]
"""Inches of the margins of a figure, inches of a cell, number of cells."""


def _figure(across: Side, down: Side) -> tuple[Figure, Cell]:
    """Return a figure for a grid, at most `WIDEST` by `HIGHEST`, and the size of its cells."""
    sizes, cells = [], []
    for (margin, cell, count), most in ((across, WIDEST), (down, HIGHEST)):
        sizes.append(min(margin + cell * count, most))
        cells.append((sizes[-1] - margin) / count)
    return new_figure(*sizes), (cells[0], cells[1])


def _every(inches: float) -> int:
    """Return n, so that labels of every n-th row or column do not overlap."""
    return max(1, math.ceil(LABEL / inches))


def _share_of_highest(scores: Array) -> Array:
    """Divide each column by its highest score; columns without a positive score are NaN."""
    highest = np.max(np.nan_to_num(scores, nan=0.0), axis=0)
    missing = np.full_like(scores, math.nan)
    shares: Array = np.divide(scores, highest, out=missing, where=highest > 0)
    return shares


def _grid(
    axes: Axes,
    values: Array,
    cell: Cell,
    labels: tuple[Sequence[str], Sequence[str]],
    limits: tuple[float, float],
    write: Callable[[float], str] | None,
) -> None:
    """Draw values ``(rows, columns)`` as a colored grid, with numbers in the cells if they fit."""
    colors = matplotlib.colormaps["Blues"].with_extremes(bad=MISSING)
    masked = np.ma.masked_invalid(values)
    axes.imshow(masked, cmap=colors, vmin=limits[0], vmax=limits[1], aspect="auto")
    columns, rows = labels
    width, height = cell
    step = _every(height)
    axes.set_yticks(range(0, len(rows), step), rows[::step])
    if width >= WRAPPED:
        wrapped = [textwrap.fill(name.replace("+", " + "), 12) for name in columns]
        axes.set_xticks(range(len(columns)), wrapped)
    else:
        every = _every(width)
        names = [plain(name) for name in columns[::every]]
        axes.set_xticks(range(0, len(columns), every), names, rotation=90)
    thick = step == 1 and width >= WRAPPED
    _separate(axes, (len(columns), len(rows)), 1.5 if thick else 0.4)
    axes.spines[:].set_visible(False)
    if write is None or values.size > MOST_ANNOTATED or width < 0.4:
        return
    middle = limits[0] + 0.55 * (limits[1] - limits[0])
    for (y, x), value in np.ndenumerate(values):
        text = "-" if math.isnan(value) else write(value)
        ink = "white" if value > middle else INK
        axes.text(x, y, text, ha="center", va="center", fontsize=8.5, color=ink)


def _separate(axes: Axes, sizes: tuple[int, int], width: float) -> None:
    """Draw white lines between the cells; minor ticks would take several times as long."""
    across, down = sizes
    x, y = np.arange(1, across) - 0.5, np.arange(1, down) - 0.5
    look: dict[str, Any] = {"colors": "white", "linewidth": width, "zorder": 2}
    axes.vlines(x, -0.5, down - 0.5, **look)
    axes.hlines(y, -0.5, across - 0.5, **look)


def _bar(figure: Figure, axes: Axes, label: str) -> None:
    """Add the color bar, with the sizes of text that the axes have."""
    bar = figure.colorbar(axes.images[0], ax=axes, fraction=0.04, pad=0.02)
    characters = int((figure.get_figheight() - 1.2) / 0.075)
    bar.set_label(textwrap.fill(label, max(14, characters)), fontsize=9, color=INK)
    bar.ax.tick_params(labelsize=8.5, colors=INK, length=0)
    bar.outline.set_visible(False)
