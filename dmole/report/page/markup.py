"""Markup from values that anyone may have written: all of them are escaped."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from dmole.messages import one_line, shortened

LONGEST_NAME = 48
"""Most characters of a name on the page; a longer one is cut in its middle."""

FEW = 12
"""Most rows of a table of details that is shown without a click."""


def html(template: str, *values: object, **named: object) -> Markup:
    """Return markup with values in the place of ``{}``; values that are no markup are escaped.

    Args:
        template: Markup of this package, never text of a run.
        values: Values by position.
        named: Values by name.

    Example:
        >>> html("<p>{}</p>", "a < b")
        Markup('<p>a &lt; b</p>')
    """
    # Markup.format does the same; with ten thousand marks and cells it takes three times as long
    safe = {name: _safe(value) for name, value in named.items()}
    return Markup(template.format(*map(_safe, values), **safe))


def _safe(value: object) -> object:
    return value if isinstance(value, int | float) else escape(value)


def join(parts: Iterable[Markup], between: str = "") -> Markup:
    """Return parts one after the other."""
    return Markup(between).join(parts)


def label(name: object) -> str:
    """Return a name of a run on one line, without characters that are not visible, and cut."""
    return shortened(one_line(str(name)), LONGEST_NAME)


def number(value: float, digits: int = 1) -> str:
    """Return a number as the page shows it, ``n/a`` if it is not finite.

    Example:
        >>> number(-3.14159), number(1234567, 0), number(float("nan"))
        ('-3.1', '1,234,567', 'n/a')
    """
    if not math.isfinite(value):
        return "n/a"
    return f"{round(value, digits) + 0.0:,.{digits}f}"


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Args:
        content: Text, which is escaped, or markup.
        value: Number by which the column is sorted; None sorts by the text.
        kind: Classes of the style sheet, such as ``number``.
    """

    content: str | Markup
    value: float | None = None
    kind: str = ""


def number_cell(value: float, digits: int = 1) -> Cell:
    """Return the cell of a number."""
    return Cell(number(value, digits), value, "number")


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Args:
        cells: Its cells; the first is the header of the row.
        task: The task that the row is about, for the filter.
    """

    cells: Sequence[Cell]
    task: str | None = None


def table(caption: str, header: Sequence[str], rows: Sequence[Row], *, kind: str = "") -> Markup:
    """Return a table whose columns the reader can sort.

    Args:
        caption: What the table holds.
        header: Name of each column, with its unit.
        rows: The rows.
        kind: Classes of the style sheet.
    """
    columns = join(html('<th scope="col">{}</th>', name) for name in header)
    return html(
        '<div class="scroll"><table class="sortable {}"><caption>{}</caption>'
        "<thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>",
        kind,
        caption,
        columns,
        join(map(_row, rows)),
    )


def _row(row: Row) -> Markup:
    cells = [_cell(cell, "th" if index == 0 else "td") for index, cell in enumerate(row.cells)]
    return html("<tr{}>{}</tr>", of_task(row.task), join(cells))


def _cell(cell: Cell, tag: str) -> Markup:
    known = cell.value is not None and math.isfinite(cell.value)
    value = html(' data-sort="{}"', repr(float(cell.value or 0.0))) if known else Markup()
    kind = html(' class="{}"', cell.kind) if cell.kind else Markup()
    head = Markup(' scope="row"') if tag == "th" else Markup()
    return html("<{0}{1}{2}{3}>{4}</{0}>", Markup(tag), head, kind, value, cell.content)


def of_task(task: str | None) -> Markup:
    """Return the attribute by which the filter finds what belongs to a task."""
    return Markup() if task is None else html(' data-task="{}"', task)


def long_table(caption: str, header: Sequence[str], rows: Sequence[Row]) -> Markup:
    """Return a table as `table` does; one of more than `FEW` rows is opened by the reader."""
    body = table(caption, header, rows)
    return details(f"{caption}: {len(rows)} rows", body) if len(rows) > FEW else body


def details(summary: str, body: Markup) -> Markup:
    """Return content that the reader opens, such as the values of a figure as a table."""
    return html("<details><summary>{}</summary>{}</details>", summary, body)


def note(text: str) -> Markup:
    """Return a remark on what is shown."""
    return html('<p class="note">{}</p>', text)
