"""The text around the numbers of a comparison: definitions, footnotes, allowed differences."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from textwrap import shorten

from dmole.metrics.evaluated import statement
from dmole.report.columns import COLUMNS, Group, counterpart_columns, learning_columns
from dmole.report.grids import Grid, shown, spread_of_tasks
from dmole.report.identity import MARKS
from dmole.report.runs import Run


@dataclass(frozen=True)
class Notes:
    """The text around the numbers.

    Args:
        runs: Number of runs by method.
        given: Advantages of each method over a continual learner, one text each.
        mixed: Allowed differences between the runs.
        definitions: Definitions by name of the figure: texts with the methods they hold for. The
            first text holds for all other methods and has an empty list.
        scoring: Metric of each task.
        constant: Most frequent reference of each task; empty if a run does not state it.
        subsample: What is said of scores on a part of the test samples; empty if all were scored.
        evaluated: What is said of methods that were not evaluated on all tasks; empty if none is.
        spreads: Standard deviation of Last within a task, by method with several runs.
    """

    runs: Mapping[str, int]
    given: Mapping[str, Sequence[str]]
    mixed: Sequence[str]
    definitions: Mapping[str, Mapping[str, Sequence[str]]]
    scoring: str
    constant: str = ""
    subsample: str = ""
    evaluated: str = ""
    spreads: Mapping[str, float] = field(default_factory=dict)

    @property
    def signs(self) -> dict[str, str]:
        """Footnote sign of each text in `given` that occurs; see `MARKS`."""
        texts = {text for given in self.given.values() for text in given}
        return {text: sign for text, sign in MARKS.items() if text in texts}

    def sign(self, method: str) -> str:
        """Return the signs after the name of a method."""
        given = self.given.get(method, ())
        return "".join(sign for text, sign in self.signs.items() if text in given)


def make_notes(
    groups: Group, grids: Sequence[Grid], given: Mapping[str, Sequence[str]], mixed: Sequence[str]
) -> Notes:
    """Collect the notes for the tables of some runs.

    Args:
        groups: Runs by method.
        grids: Tables whose columns are figures.
        given: See `Notes`.
        mixed: See `Notes`.
    """
    first = next(iter(groups.values()))[0]
    metrics = {t: c["metric"] for t, c in first.task_configs.items() if c.get("metric")}
    scoring = ", ".join(f"{task} by {_metric_name(metric)}" for task, metric in metrics.items())
    definitions = {name: each for grid in grids for name, each in _definitions(groups, grid)}
    counts = {method: len(runs) for method, runs in groups.items()}
    constant = _constant_answers(first) if any(grid.references for grid in grids) else ""
    spreads = {method: spread_of_tasks(runs) for method, runs in groups.items()}
    spreads = {method: spread for method, spread in spreads.items() if not math.isnan(spread)}
    return Notes(
        counts,
        given,
        mixed,
        definitions,
        scoring,
        constant,
        _subsample(groups),
        _evaluated(groups),
        spreads,
    )


def _subsample(groups: Group) -> str:
    """Return which methods were scored on a part of the test samples, and the error of Last."""
    texts = []
    for method, runs in groups.items():
        drawn = runs[0].subsample
        if drawn is not None:
            error = drawn.error_of_last()
            known = "unknown" if math.isnan(error) else shown(error)
            texts.append(f"{method} ({drawn.limit} a task; {known})")
    return ", ".join(texts)


def _evaluated(groups: Group) -> str:
    """Return which methods were not evaluated on all tasks, and their missing figures."""
    texts = {method: statement(runs[0].metrics) for method, runs in groups.items()}
    return " ".join(f"{method}: {text}" for method, text in texts.items() if text)


def _definitions(group: Group, grid: Grid) -> Iterator[tuple[str, dict[str, list[str]]]]:
    """Yield the name and the definitions of each column for which a run states one."""
    for column in (*COLUMNS, *learning_columns(group), *counterpart_columns()):
        texts: dict[str, list[str]] = {}
        for method, runs in group.items() if column.name in grid.columns else ():
            text = column.define(runs[0])
            missing = math.isnan(grid.rows[method][column.name][0])
            if text and (column.explained or not missing):
                texts.setdefault(str(text), []).append(method)
        ordered = sorted(texts, key=lambda text: -len(texts[text]))
        if ordered:
            yield column.name, {ordered[0]: [], **{text: texts[text] for text in ordered[1:]}}


def _constant_answers(run: Run) -> str:
    stated = run.metrics["constant_answer"]
    return ", ".join(f"{task}: {shorten(str(stated[task].get('answer')), 40)}" for task in stated)


def _metric_name(metric: object) -> str:
    return str(metric.get("class_path", metric)) if isinstance(metric, dict) else str(metric)


def statements(notes: Notes, *, bold: bool) -> list[str]:
    """Return the notes on the numbers of a table, without the definitions."""
    lines = ["Mean ± sample standard deviation over runs; percent, percentage points."]
    signs = " ".join(notes.signs.values())
    if notes.spreads:
        texts = ", ".join(f"{method} {shown(each)}" for method, each in notes.spreads.items())
        lines.append(
            "Gains and losses of tasks cancel in a mean over tasks; standard deviation of Last "
            f"within a task, root mean square over the tasks: {texts}."
        )
    if notes.subsample:
        lines.append(
            "Scored on a part of the test samples, drawn at random (eval_limit; the standard error "
            f"of Last from that draw): {notes.subsample}."
        )
    if notes.evaluated:
        lines.append(notes.evaluated)
    if bold:
        without = f", methods marked {signs} excluded" if signs else ""
        lines.append(
            "Bold: the best mean of a column as printed, ties included"
            f"{without}. Never bold: oracle figures, which need the task identity, routing rates "
            "and costs."
        )
    lines += [f"{sign} {text}." for text, sign in notes.signs.items()]
    lines += [f"Allowed difference: {text}." for text in notes.mixed]
    if notes.constant:
        lines.append(
            "Constant answer: the most frequent reference of a task as the answer to all of its "
            f"samples ({notes.constant})."
        )
    if notes.scoring:
        lines.append(f"Metrics: {notes.scoring}.")
    return lines


def definition_lines(notes: Notes, names: Collection[str]) -> list[str]:
    """Return one line for each of the named figures, and one more per deviating definition."""
    return [
        f"{name}{' (' + ', '.join(methods) + ')' if methods else ''}: {text}"
        for name, texts in notes.definitions.items()
        if name in names
        for text, methods in texts.items()
    ]
