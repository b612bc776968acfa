"""The figures of the run, each with its definition, and those of each task."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from markupsafe import Markup

from dmole.metrics.counterparts import COUNTERPARTS, KEY
from dmole.metrics.evaluated import reasons, statement
from dmole.metrics.summary import FIGURES, PER_TASK
from dmole.report.page.markup import Cell, Row, html, join, label, note, number_cell, table
from dmole.report.page.record import RunRecord
from dmole.report.page.section import Section
from dmole.report.runs import Run

ORACLE = "with only the expert of each sample's true task"


def _draw(record: RunRecord) -> Markup | None:
    run = record.run
    if run is None:
        return None
    parts = [_facts(record, run), _figures(run), _counterparts(run), _by_task(record, run)]
    if run.subsample is not None:
        parts.append(note(f"The scores are of {run.subsample}; all metrics are estimates."))
    if text := statement(run.metrics):
        parts.append(note(" ".join([text, *(f"{line}." for line in reasons(run.metrics))])))
    return join(parts)


def _facts(record: RunRecord, run: Run) -> Markup:
    """Return what the run is, as terms and descriptions."""
    entries = (html("<div><dt>{}</dt><dd>{}</dd></div>", *fact) for fact in _facts_of(record, run))
    return html('<dl class="facts">{}</dl>', join(entries))


def _facts_of(record: RunRecord, run: Run) -> Iterator[tuple[str, str]]:
    learned, planned = run.progress
    yield "Run", label(run.method)
    yield "Folder", record.name
    yield "Tasks learned", f"{learned if len(run.matrix) > 1 else 0} of {planned}"
    yield "Stages evaluated", _stages(run)
    if run.seed is not None:
        yield "Seed", label(run.seed)
    backbone = (run.section("model").get("backbone") or {}).get("init_args")
    model = backbone.get("name_or_path") if isinstance(backbone, dict) else None
    if isinstance(model, str):  # of a folder only the name: a page may be sent to others
        yield "Base model", label(Path(model).name if Path(model).is_absolute() else model)
    parent = run.metrics.get("parent")
    if isinstance(parent, dict) and parent.get("run") is not None:
        yield "Extends", label(parent["run"])


def _stages(run: Run) -> str:
    first, *later = (not np.isnan(row).all() for row in run.matrix)
    return f"{sum(later)}" + (", and once before training" if first else "")


def _figures(run: Run) -> Markup:
    stated = run.metrics.get("definitions") or {}
    has_oracle = any(not math.isnan(run.oracle(name)) for name in FIGURES)
    header = ["Metric", "Value (%)", *(["Oracle (%)"] if has_oracle else []), "Definition"]
    rows = []
    for name in FIGURES:
        oracle = [number_cell(run.oracle(name))] if has_oracle else []
        definition = Cell(str(stated.get(name, "")), kind="text")
        rows.append(Row([Cell(name), number_cell(run.figure(name)), *oracle, definition]))
    words = f"R[t,i]: score of task i after stage t. Oracle: {ORACLE}."
    return table("Metrics of the run", header, rows) + note(words)


def _counterparts(run: Run) -> Markup:
    """Return the table of the figures under the definitions of other libraries."""
    stated = run.metrics.get(KEY) or {}
    definitions, missing = stated.get("definitions") or {}, stated.get("missing") or {}
    rows = []
    for name in COUNTERPARTS if stated else ():
        texts = [str(part[name]) for part in (definitions, missing) if part.get(name)]
        definition = Cell("; missing: ".join(texts), kind="text")
        rows.append(Row([Cell(name), number_cell(run.counterpart(name)), definition]))
    header = ["Metric", "Value (%)", "Definition"]
    return table("Metrics as other libraries define them", header, rows) if rows else join([])


def _by_task(record: RunRecord, run: Run) -> Markup:
    """Return the table of the tasks, the scores of a constant answer beside them."""
    constant = run.metrics.get("constant_answer") or {}
    header = ["Task", "Learned at stage", *(f"{name} (%)" for name in PER_TASK)]
    rows = []
    for task in run.task_names:
        figures = [number_cell(run.of_task(name, task)) for name in PER_TASK]
        cells = [Cell(label(task)), number_cell(record.learned_at.get(task, math.nan), 0), *figures]
        if constant:
            score = (constant.get(task) or {}).get("score")
            cells.append(number_cell(math.nan if score is None else score))
        rows.append(Row(cells, task))
    if constant:
        header.append("Constant answer (%)")
    found = table("Metrics of each task", header, rows)
    words = "Constant answer: the score of the most frequent reference as the only answer."
    return found + note(words) if constant else found


SUMMARY = Section(
    "summary",
    "Summary: how well the run learned and remembered",
    "Last is the mean score after the last stage, BWT what earlier tasks lost (below 0) or gained "
    "since they were learned. The oracle answers each sample with the expert of its true task: "
    "where it is higher, the router chose a wrong one.",
    _draw,
)
