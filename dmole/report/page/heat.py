"""Heatmaps as tables: every cell holds its value as text, the color repeats it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape

from dmole.report.page.markup import html, join, label, number, of_task

LEVELS = 20
"""Steps of a color scale; the classes are ``q0`` to ``q20`` for blue and ``o0`` to ``o20``."""

MOST = 120
"""Most rows and columns that are drawn; the caption of a larger heatmap says so."""

_SIDE_BY_SIDE = 8  # columns whose names still fit
_LONGEST = 10  # characters of a name that does not stand upright

_BLUE = ((247, 251, 255), (107, 174, 214), (8, 48, 107))
_ORANGE = ((255, 247, 240), (230, 140, 70), (127, 50, 0))


@dataclass(frozen=True)
class Heat:
    """A heatmap.

    Args:
        caption: What the cells hold, with the unit.
        corner: What rows and columns are, such as ``after stage``.
        columns: Name of each column.
        rows: Name of each row.
        values: Shape ``(rows, columns)``; NaN is drawn as an empty cell.
        high: The value of the darkest color; the lightest is 0. Negative values are drawn in the
            other color.
        digits: Digits after the decimal point.
        describe: Returns what the reader is told of a cell, by row and column.
        outlined: Cells with an outline, by row and column.
        tasks: Task of each column, for the filter; None if columns are no tasks.
        row_tasks: Task of each row; None if rows are no tasks.
        color: ``q`` for blue, ``o`` for orange.
        missing: How a cell without a value looks: ``none`` is hatched, ``blank`` is empty.
    """

    caption: str
    corner: str
    columns: Sequence[str]
    rows: Sequence[str]
    values: npt.NDArray[np.float64]
    high: float = 100.0
    digits: int = 0
    describe: Callable[[int, int], str] | None = None
    outlined: Collection[tuple[int, int]] = ()
    tasks: Sequence[str] | None = None
    row_tasks: Sequence[str] | None = None
    color: Literal["q", "o"] = "q"
    missing: Literal["none", "blank"] = "none"

    def markup(self) -> Markup:
        """Return the table, at most `MOST` rows and columns of it."""
        rows, columns = range(len(self.rows))[:MOST], range(len(self.columns))[:MOST]
        ends = [of_task(self.tasks[at] if self.tasks else None) for at in columns]
        cut = len(rows) < len(self.rows) or len(columns) < len(self.columns)
        more = f" The first {len(rows)} rows and {len(columns)} columns are shown." if cut else ""
        heads = join(
            html('<th scope="col"{}><span>{}</span></th>', end, label(name))
            for name, end in zip(self.columns, ends, strict=False)
        )
        body = join(self._row(row, columns, ends) for row in rows)
        upright = stands_upright([self.columns[at] for at in columns])
        return heat_table(self.caption + more, self.corner, heads, body, upright=upright)

    def _row(self, row: int, columns: range, ends: Sequence[str]) -> Markup:
        cells = Markup("".join(self._cell(row, column, ends[column]) for column in columns))
        task = self.row_tasks[row] if self.row_tasks else None
        name = label(self.rows[row])
        return html('<tr{}><th scope="row">{}</th>{}</tr>', of_task(task), name, cells)

    def _cell(self, row: int, column: int, of_column: str) -> str:
        """Return a cell as text, since a page has ten thousands of them."""
        value = float(self.values[row, column])
        if math.isnan(value):
            return f'<td class="{self.missing}"{of_column}></td>'
        other = "o" if self.color == "q" else "q"
        kind = level(value / self.high, self.color if value >= 0 else other)
        outline = " own" if (row, column) in self.outlined else ""
        told = f' title="{escape(self.describe(row, column))}"' if self.describe else ""
        text = number(value, self.digits)
        return f'<td class="{kind}{outline}"{of_column}{told}>{text}</td>'


def stands_upright(names: Sequence[str]) -> bool:
    """Return whether the names of columns are turned, since they do not fit side by side."""
    return len(names) > _SIDE_BY_SIDE or any(len(name) > _LONGEST for name in names)


def heat_table(
    caption: str, corner: str, heads: Markup, body: Markup, *, upright: bool = False
) -> Markup:
    """Return the figure of a heatmap.

    Args:
        caption: What the cells hold, with the unit.
        corner: What rows and columns are.
        heads: The header cells of the columns.
        body: The rows.
        upright: Whether the names of the columns are turned.
    """
    return html(
        '<figure class="map"><figcaption>{0}</figcaption><div class="scroll">'
        '<table class="heat{1}" tabindex="0" aria-label="{0}"><thead>'
        '<tr><td class="corner">{2}</td>{3}</tr></thead><tbody>{4}</tbody></table></div></figure>',
        caption,
        " many" if upright else "",
        corner,
        heads,
        body,
    )


def level(share: float, color: str = "q") -> str:
    """Return the class of a color between light, 0, and dark, 1; the sign does not count."""
    return f"{color}{round(LEVELS * min(1.0, abs(share)))}"


def level_rules() -> str:
    """Return the style rules of all classes of `level`; dark ones have white text."""
    rules = []
    for name, stops in (("q", _BLUE), ("o", _ORANGE)):
        for step in range(LEVELS + 1):
            color = _mixed(stops, step / LEVELS)
            text = "#fff" if _luminance(color) < 0.19 else "#111"
            rules.append(f".{name}{step}{{background:#{bytes(color).hex()};color:{text}}}")
    return "\n".join(rules)


def _mixed(stops: Sequence[Sequence[int]], share: float) -> tuple[int, ...]:
    at = min(len(stops) - 2, int(share * (len(stops) - 1)))
    part = share * (len(stops) - 1) - at
    return tuple(
        round(low + part * (high - low)) for low, high in zip(stops[at], stops[at + 1], strict=True)
    )


def _luminance(color: Sequence[int]) -> float:
    """Return the relative luminance of sRGB, by which WCAG measures contrast."""
    linear = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))
