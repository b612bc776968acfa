"""The rows of all sections, and the tables that docs/performance.md holds between two marks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dmole.storage.files import atomic_path
from experiments.speed.cost_model import amount_of, fitted
from experiments.speed.timing import Ratio, Times, Work

BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"


@dataclass(frozen=True)
class Row:
    """One figure.

    Args:
        section: Table it belongs to.
        what: Line of the table.
        model: Column of the table.
        value: Median and quartiles.
        bar: Largest value that is aimed at; None if there is none.
        note: A remark.
    """

    section: str
    what: str
    model: str
    value: Ratio
    bar: float | None = None
    note: str = ""

    def text(self) -> str:
        """Return the median, the quartiles if they differ, and whether the bar is met."""
        value = self.value
        text = f"{value.median:.2f}"
        if value.high > value.low:
            text += f" ({value.low:.2f} to {value.high:.2f})"
        if self.bar is not None:
            text += f"; {'meets' if value.median <= self.bar else 'misses'} {self.bar:g}"
        return text

    def to_json(self) -> dict[str, Any]:
        """Return the row as plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Row:
        """Return the row of plain values."""
        return cls(**{**values, "value": Ratio(**values["value"])})


def cost_rows(
    kind: str, model: str, works: Mapping[str, Work], times: Times, references: Sequence[str]
) -> Iterator[Row]:
    """Yield predicted over measured seconds of each work, by the model fitted to the references.

    Args:
        kind: What a work is.
        model: The base model.
        works: Works that were timed.
        times: Their seconds.
        references: Works that the three numbers are fitted to; the others are predicted.
    """
    amounts = {name: amount_of(work) for name, work in works.items()}
    cost = fitted({name: amounts[name] for name in references}, times)
    for name, amount in amounts.items():
        measured = times.median(name)
        note = f"{amount.calls:,} calls, {amount.flops / 1e9:.2f} GFLOP, "
        note += f"{amount.bytes / 1e6:.0f} MB, {1000 * measured:.0f} ms"
        predicted = cost.seconds(amount) / measured
        value = Ratio(predicted, predicted, predicted)
        yield Row(f"cost model / measured, {kind}", name, model, value, None, note)


def tables(rows: Iterable[Row]) -> str:
    """Return a Markdown table for each section: a line for each figure, a column for each model."""
    listed = list(rows)
    models = list(dict.fromkeys(row.model for row in listed))
    parts = []
    for section in dict.fromkeys(row.section for row in listed):
        own = [row for row in listed if row.section == section]
        shown = [model for model in models if any(row.model == model for row in own)]
        lines = [f"| {section} | {' | '.join(shown)} |", f"| --- |{' ---: |' * len(shown)}"]
        for what in dict.fromkeys(row.what for row in own):
            cells = {row.model: row for row in own if row.what == what}
            texts = [cells[model].text() if model in cells else "" for model in shown]
            lines.append(f"| {what} | {' | '.join(texts)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def renewed(old: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """Return old rows, without those of a table and model that were measured again, and new ones.

    Rows of a table stay together, in the order of the first measurement.
    """
    again = {(row.section, row.model) for row in new}
    rows = [*(row for row in old if (row.section, row.model) not in again), *new]
    sections = list(dict.fromkeys(row.section for row in (*old, *new)))
    models = ("tiny", "medium", "wide")
    return sorted(rows, key=lambda row: (sections.index(row.section), models.index(row.model)))


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a JSON file; none if there is no file."""
    if not path.is_file():
        return []
    return [Row.from_json(values) for values in json.loads(path.read_text(encoding="utf-8"))]


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as JSON, one a line."""
    lines = ",\n".join(json.dumps(row.to_json()) for row in rows)
    with atomic_path(path) as temporary:
        temporary.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def with_tables(page: str, text: str) -> str:
    """Return a page with new tables between its marks.

    Raises:
        ValueError: If the page lacks a mark.
    """
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page has no {BEGIN} ... {END}")
    return f"{head}{BEGIN}\n\n{text}\n{END}{tail}"
