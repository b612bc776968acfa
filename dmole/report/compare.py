"""Several runs side by side: a table, its data, a figure."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from dmole.files import atomic_path, write_csv
from dmole.metrics.continual import seen_means
from dmole.metrics.matrix import Array
from dmole.report.figures import comparison_figure, save_figure
from dmole.report.runs import Run, first_difference, load_run

COLUMNS: dict[str, Callable[[Run], float]] = {
    "Last": lambda run: run.figure("Last"),
    "AVG": lambda run: run.figure("AVG"),
    "BWT": lambda run: run.figure("BWT"),
    "oracle BWT": lambda run: run.oracle_bwt,
    "MAA": lambda run: run.figure("MAA"),
    "Forgetting": lambda run: run.figure("Forgetting"),
    "trainable parameters per task": lambda run: run.trainable_per_task,
    "seconds": lambda run: run.seconds,
}
"""What the table shows of a run, in this order."""

COUNTS = ("trainable parameters per task", "seconds")
"""Columns written as whole numbers with thousands apart."""

Group = Mapping[str, Sequence[Run]]
Table = dict[str, dict[str, tuple[float, float]]]


def compare(run_dirs: Sequence[str | Path], output: str | Path) -> str:
    """Compare runs, grouped by method; runs of one method are taken as repeats (seeds).

    Writes ``comparison.md``, ``comparison.csv`` and ``comparison.png`` and prints the table.

    Args:
        run_dirs: Run folders.
        output: Folder to write to; made where missing.

    Returns:
        The Markdown table.

    Raises:
        FileNotFoundError: If a run folder or a file in it is missing.
        ValueError: If there is no run, a run is named twice, or runs differ in their tasks.
    """
    groups = group_runs([load_run(folder) for folder in run_dirs])
    table = tabulate(groups)
    text = to_markdown(table, groups)
    output = Path(output)
    with atomic_path(output / "comparison.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    _write_csv(output / "comparison.csv", table, groups)
    curves = {method: np.stack(c) for method, runs in groups.items() if (c := _curves(runs))}
    bars = {method: {n: row[n] for n in ("Last", "BWT")} for method, row in table.items()}
    save_figure(comparison_figure(curves, bars), output / "comparison.png")
    print(text)
    return text


def group_runs(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Return runs by method, in order of appearance.

    Raises:
        ValueError: If there is no run, a folder comes twice, or tasks differ between runs.
    """
    if not runs:
        raise ValueError("no run to compare")
    groups: dict[str, list[Run]] = {}
    folders = set()
    for run in runs:
        if run.folder.resolve() in folders:
            raise ValueError(f"run {run.folder} is given twice")
        if run.task_names != runs[0].task_names:
            ours, theirs = ", ".join(run.task_names), ", ".join(runs[0].task_names)
            raise ValueError(f"tasks differ: {run.folder} has {ours}; {runs[0].folder} {theirs}")
        folders.add(run.folder.resolve())
        group = groups.setdefault(run.method, [])
        if group and (key := first_difference(group[0].config, run.config)):
            raise ValueError(
                f"{run.folder} and {group[0].folder} are both called {run.method!r} but differ in "
                f"{key}; give one another trainer.name"
            )
        group.append(run)
    return groups


def tabulate(groups: Group) -> Table:
    """Return mean and sample standard deviation of each column by method.

    The mean is NaN if one run lacks the figure; the deviation is NaN for a single run.
    """
    return {
        method: {
            name: _mean_and_spread([read(run) for run in runs]) for name, read in COLUMNS.items()
        }
        for method, runs in groups.items()
    }


def _mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    numbers = np.asarray(values, dtype=np.float64)
    spread = float(numbers.std(ddof=1)) if len(numbers) > 1 else math.nan
    return float(numbers.mean()), spread


def to_markdown(table: Table, groups: Group) -> str:
    """Return the table as Markdown, with what its numbers mean below it."""
    header = ["method", "runs", *COLUMNS]
    lines = [" | ".join(header), " | ".join(["---", *["---:"] * (len(header) - 1)])]
    for method, row in table.items():
        cells = [_cell(name, *row[name]) for name in COLUMNS]
        lines.append(" | ".join([escape_markdown(method), str(len(groups[method])), *cells]))
    body = "\n".join(f"| {line} |" for line in lines)
    return (
        f"{body}\n\nMean ± standard deviation over runs; percent, percentage points.\n\n"
        + "".join(
            f"- {name}: {escape_markdown(definition)}\n"
            for name, definition in _definitions(groups).items()
        )
    )


_SPECIAL = re.compile(r"([\\`|]|<(?=[A-Za-z/!?])|&(?=#?\w+;)|\](?=[(\[:]))")
"""What begins code, a cell, a tag, an entity or the address of a link."""


def escape_markdown(text: str) -> str:
    r"""Return a text that Markdown shows as it is: no markup, no HTML, one line.

    Example:
        >>> escape_markdown("a|b <script>")
        'a\\|b \\<script>'
    """
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def _definitions(groups: Group) -> dict[str, str]:
    """Return how the figures shown are defined, as the first run states it."""
    first = next(iter(groups.values()))[0]
    stated = first.metrics.get("definitions") or {}
    return {name: str(stated[name]) for name in COLUMNS if name in stated}


def _cell(name: str, mean: float, spread: float) -> str:
    if math.isnan(mean):
        return "n/a"
    if name in COUNTS:
        return f"{mean:,.0f}" if math.isnan(spread) else f"{mean:,.0f} ± {spread:,.0f}"
    return f"{mean:.2f}" if math.isnan(spread) else f"{mean:.2f} ± {spread:.2f}"


def _write_csv(path: Path, table: Table, groups: Group) -> None:
    """Write means and deviations exactly; missing ones are empty."""
    header = ["method", "runs", *(f"{name}{end}" for name in COLUMNS for end in ("", " sd"))]
    rows = []
    for method, row in table.items():
        cells = {"method": method, "runs": str(len(groups[method]))}
        for name, pair in row.items():
            for end, value in zip(("", " sd"), pair, strict=True):
                cells[name + end] = "" if math.isnan(value) else repr(value)
        rows.append(cells)
    write_csv(path, header, rows)


def _curves(runs: Sequence[Run]) -> list[Array]:
    """Return the runs' mean scores on seen tasks, none without stages or if these differ."""
    curves = [seen_means(run.matrix, run.task_of_stage) for run in runs]
    lengths = {len(curve) for curve in curves}
    return curves if len(lengths) == 1 and lengths != {0} else []
