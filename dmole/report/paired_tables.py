"""Paired differences as Markdown, LaTeX and CSV, with what was resampled."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

from dmole.metrics.paired import DECIMALS, LEVEL, RESAMPLES, PairedDifference
from dmole.report.notes import Notes
from dmole.report.paired import PairedTable
from dmole.report.tables import escape_latex, escape_markdown, latex_table
from dmole.storage.files import write_csv

ALL_TASKS = "mean over tasks"
"""What `write_paired_csv` calls the difference in Last, in the column of the tasks."""

_PERCENT = f"{100 * LEVEL:.0f} %"
_HEADER = ("method", "seeds", "ahead", "difference in Last", f"{_PERCENT} interval", "verdict")


def paired_markdown(table: PairedTable, notes: Notes) -> str:
    """Return the section of the paired differences: in Last with the notes, and by task."""
    below = "".join(f"- {escape_markdown(line)}\n" for line in paired_statements(table))
    parts = [f"### {_title(table)}", _markdown(_last_lines(table, notes)) + "\n" + below.rstrip()]
    if len(table.tasks) > 1:
        parts += [f"### {_task_title(table)}", _markdown(_task_lines(table, notes)).rstrip()]
    return "\n\n".join(parts) + "\n"


def paired_latex(table: PairedTable, notes: Notes) -> str:
    """Return the table of the differences in Last for LaTeX."""
    tabular = _latex(_last_lines(table, notes))
    return latex_table(_title(table), "tab:paired", tabular, _latex_below(table, notes))


def paired_task_latex(table: PairedTable, notes: Notes) -> str:
    """Return the table of the differences by task for LaTeX."""
    tabular = _latex(_task_lines(table, notes))
    below = _latex_below(table, notes)
    return latex_table(_task_title(table), "tab:paired_by_task", tabular, below)


def _latex_below(table: PairedTable, notes: Notes) -> list[str]:
    marks = [f"{sign} {text}." for text, sign in notes.signs.items()]
    return [*paired_statements(table), *marks]


def write_paired_csv(path: Path, table: PairedTable) -> None:
    """Write one row per method for the mean over tasks and one per task, in full precision."""
    lines = []
    for method, row in table.rows.items():
        head = {
            "method": method,
            "reference": table.reference,
            "seeds": " ".join(map(str, row.seeds)),
            "ahead": str(row.ahead) if row.seeds else "",
        }
        by_task = [(task, each, [task]) for task, each in row.tasks.items()]
        for name, each, tasks in [(ALL_TASKS, row.last, table.tasks), *by_task]:
            cells = {"difference": each.value, "low": each.low, "high": each.high}
            numbers = {k: "" if math.isnan(value) else repr(value) for k, value in cells.items()}
            reasons = dict.fromkeys(row.missing[task] for task in tasks if task in row.missing)
            why = "; ".join(f"{reason.text} ({reason.example})" for reason in reasons)
            lines.append(head | {"task": name, "verdict": each.verdict, "note": why} | numbers)
    header = ("method", "reference", "seeds", "ahead", "task", "difference", "low", "high")
    write_csv(path, (*header, "verdict", "note"), lines)


def paired_statements(table: PairedTable) -> list[str]:
    """Return what the differences are, what was resampled, and which are missing and why."""
    return [
        f"Difference: method minus {table.reference}, percentage points, over the seeds that both "
        "have, paired by seed and test sample. Ahead: in how many of these seeds the method has "
        "the higher Last.",
        f"{_PERCENT} interval: percentiles of {RESAMPLES:,} bootstrap samples. Each draws with "
        "replacement the seeds, and in each task the test samples, the same ones for both methods "
        "and all seeds. The tasks are fixed.",
        "Verdict: better or worse if the interval, as printed, lies above or below 0; level if it "
        "contains 0. Level methods are not told apart, which does not show that they are equal.",
        *_cautions(table),
        *_missing(table),
    ]


def _cautions(table: PairedTable) -> Iterator[str]:
    """Yield where the intervals say less than their nominal coverage."""
    counts = {len(row.seeds) for row in table.rows.values()}
    if counts & set(range(2, 10)):
        yield (
            "With few seeds an interval is too narrow where seeds differ more than samples do. If "
            f"seeds alone differed, it would cover the true difference not in {_PERCENT} of all "
            "cases, but in 50 % with 2 seeds, 75 % with 3 and 84 % with 5."
        )
    single = [method for method, row in table.rows.items() if len(row.seeds) == 1]
    if single:
        yield (
            f"One seed in common ({_names(single, table)}): the interval is over test samples "
            "alone and says nothing of other seeds."
        )
    if len(table.rows) > 1:
        yield (
            f"The intervals are not adjusted for the {len(table.rows)} methods of the table: about "
            "one in 20 of those that equal the reference is called better or worse by chance."
        )


def _missing(table: PairedTable) -> Iterator[str]:
    """Yield one line per reason and set of tasks, with the methods and the first example."""
    methods: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    examples: dict[tuple[str, tuple[str, ...]], str] = {}
    for method, row in table.rows.items():
        for reason in dict.fromkeys(row.missing.values()):
            tasks = tuple(task for task in row.tasks if row.missing.get(task) == reason)
            methods.setdefault((reason.text, tasks), []).append(method)
            examples.setdefault((reason.text, tasks), reason.example)
    for (text, tasks), names in methods.items():
        where = "" if len(tasks) == len(table.tasks) else f" in {', '.join(tasks)} and Last"
        more = "first: " if len(names) > 1 else ""
        yield f"n/a{where} for {_names(names, table)}: {text} ({more}{examples[text, tasks]})."


def _names(methods: list[str], table: PairedTable) -> str:
    return "all methods" if len(methods) == len(table.rows) > 1 else ", ".join(methods)


def _title(table: PairedTable) -> str:
    return f"Paired differences to {table.reference}"


def _task_title(table: PairedTable) -> str:
    return f"Paired differences to {table.reference} in each task"


# -- rows --------------------------------------------------------------------------------------


def _last_lines(table: PairedTable, notes: Notes) -> list[tuple[str, ...]]:
    """Return header and rows of the differences in Last, as plain texts."""
    lines: list[tuple[str, ...]] = [_HEADER]
    for method, row in table.rows.items():
        ahead = f"{row.ahead} of {len(row.seeds)}" if row.seeds else "n/a"
        cells = (_value(row.last), _interval(row.last), row.last.verdict)
        lines.append((method + notes.sign(method), str(len(row.seeds)), ahead, *cells))
    return lines


def _task_lines(table: PairedTable, notes: Notes) -> list[tuple[str, ...]]:
    """Return header and rows of the differences by task, as plain texts."""
    lines: list[tuple[str, ...]] = [("method", *table.tasks)]
    for method, row in table.rows.items():
        cells = (_cell(row.tasks[task]) for task in table.tasks)
        lines.append((method + notes.sign(method), *cells))
    return lines


def _cell(each: PairedDifference) -> str:
    if each.verdict == "n/a":
        return "n/a"
    return f"{_value(each)} {_interval(each)} {each.verdict}"


def _value(each: PairedDifference) -> str:
    return "n/a" if math.isnan(each.value) else _number(each.value)


def _interval(each: PairedDifference) -> str:
    if math.isnan(each.value):
        return "n/a"
    return f"[{_number(each.low)}, {_number(each.high)}]"


def _number(value: float) -> str:
    """Return a number with its sign; 0 has none."""
    value = round(value, DECIMALS) + 0.0
    return f"{value:+.{DECIMALS}f}" if value else f"{value:.{DECIMALS}f}"


def _markdown(lines: list[tuple[str, ...]]) -> str:
    header, *rows = ([escape_markdown(cell) for cell in line] for line in lines)
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "".join(f"| {' | '.join(line)} |\n" for line in (header, rule, *rows))


def _latex(lines: list[tuple[str, ...]]) -> str:
    header, *rows = (
        " & ".join([escape_latex(name), *map(_latex_cell, cells)]) + r" \\"
        for name, *cells in lines
    )
    columns = "l" + "r" * (len(lines[0]) - 1)
    parts = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", header, r"\midrule", *rows]
    return "\n".join([*parts, r"\bottomrule", r"\end{tabular}"])


def _latex_cell(text: str) -> str:
    return re.sub(r"-\{\}(?=\d)", "$-$", escape_latex(text))
