"""The tables of docs/alike.md: figures of both orders, and paired differences with intervals."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dmole.report.runs import Run, load_run
from dmole.storage.files import write_csv
from experiments.results import fill
from experiments.results_jobs import MARK, OUTPUT, ROOT, read_rows

PAGE = ROOT / "docs" / "alike.md"
ORDERS = ("given", "reversed")
FILE = OUTPUT / "alike" / "figures.csv"
METHOD = "dmole_alike"
ORDER_FREE = ("finetune", "joint")
"""Rows that do not depend on the order of the tasks, but for the shuffling of samples."""
STUDENT = {3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 8: 2.365, 9: 2.306, 12: 2.201, 18: 2.110}
"""Quantile 0.975 of Student's t by number of pairs."""
COLUMNS = ("Last", "Learned", "BWT", "oracle Last", "own first", "two experts", "partner")

Figures = dict[tuple[str, int], dict[str, float]]
"""Figures of a row by order and seed."""


def read_figures(runs: Path) -> dict[str, Figures]:
    """Return the figures of all finished runs by row, here or listed in `FILE` before."""
    rows: dict[str, Figures] = defaultdict(dict)
    for line in read_rows(FILE):
        figures = {name: float(line[name]) for name in COLUMNS}
        rows[line["row"]][line["order"], int(line["seed"])] = figures
    for order in ORDERS:
        for mark in sorted((runs / order).glob(f"*/version_*/{MARK}")):
            run = load_run(mark.parent)
            if run.seed is not None:
                rows[run.method][order, run.seed] = figures_of(run)
    lines = [
        {"row": row, "order": order, "seed": seed, **{n: f"{v:.2f}" for n, v in values.items()}}
        for row, figures in rows.items()
        for (order, seed), values in sorted(figures.items())
    ]
    write_csv(FILE, ("row", "order", "seed", *COLUMNS), lines)
    return rows


def figures_of(run: Run) -> dict[str, float]:
    """Return the figures of a run by column, NaN where one does not apply."""
    metrics = run.metrics
    routing: Mapping[str, Any] = metrics.get("routing") or {}
    values = {
        "Last": metrics.get("Last"),
        "Learned": metrics.get("Learned"),
        "BWT": metrics.get("BWT"),
        "oracle Last": run.oracle("Last"),
        "own first": routing.get("own_first"),
        "two experts": routing.get("second_expert"),
        "partner": routing.get("trained_with_partner"),
    }
    return {name: math.nan if value is None else float(value) for name, value in values.items()}


def spread(values: Iterable[float]) -> str:
    """Return mean and sample standard deviation as text; n/a without values."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return "n/a"
    deviation = f" ± {np.std(known, ddof=1):.1f}" if len(known) > 1 else ""
    return f"{np.mean(known):.1f}{deviation}"


def interval(differences: Sequence[float]) -> str:
    """Return the mean of paired differences with its 95% interval; n/a without a pair."""
    if not differences:
        return "n/a"
    mean, pairs = float(np.mean(differences)), len(differences)
    if pairs not in STUDENT:  # two pairs say nothing about the spread
        return f"{mean:+.1f} ({pairs} pairs)"
    reach = STUDENT[pairs] * float(np.std(differences, ddof=1)) / math.sqrt(pairs)
    return f"{mean:+.1f} [{mean - reach:+.1f}, {mean + reach:+.1f}]"


def summary_table(rows: Mapping[str, Figures]) -> str:
    """Return one line for each row: figures over all orders and seeds, Last by order."""
    header = ("method", "runs", "Last, given", "Last, reversed", *COLUMNS[1:], f"{METHOD} minus it")
    lines = []
    for row, figures in rows.items():
        by_order = [
            spread(f["Last"] for key, f in figures.items() if key[0] == order) for order in ORDERS
        ]
        cells = [spread(f[name] for f in figures.values()) for name in COLUMNS[1:]]
        lines.append((row, str(len(figures)), *by_order, *cells, advantage(rows, row)))
    return markdown(header, lines)


def advantage(rows: Mapping[str, Figures], row: str) -> str:
    """Return the paired difference of Last, with runs of the same order and seed.

    The rows of `ORDER_FREE` that were run in one order only are paired with both.
    """
    if row == METHOD or METHOD not in rows:
        return ""
    figures = rows[row]
    alone = row in ORDER_FREE and {order for order, _ in figures} == {ORDERS[0]}
    pairs = []
    for (order, seed), own in rows[METHOD].items():
        other = figures.get((ORDERS[0] if alone else order, seed))
        if other is not None:
            pairs.append(own["Last"] - other["Last"])
    return interval(pairs)


def rules_table(file: Path) -> str:
    """Return the figures of the routing rules, with differences to the published rule."""
    found = read_rows(file)
    by_rule: dict[str, dict[str, dict[str, float]]] = defaultdict(dict)
    names = [name for name in found[0] if name not in ("rule", "run")]
    for line in found:
        by_rule[line["rule"]][line["run"]] = {name: float(line[name]) for name in names}
    lines = []
    for rule, runs in by_rule.items():
        differences = [runs[run]["Last"] - by_rule["published"][run]["Last"] for run in runs]
        cells = [spread(figures[name] for figures in runs.values()) for name in names]
        lines.append((rule, *cells, "" if rule == "published" else interval(differences)))
    return markdown(("rule", *names, "Last minus published"), lines)


def pairs_table(file: Path) -> str:
    """Return the scores of the second task by pair, size and variant, and of the first one."""
    found = read_rows(file)
    groups: dict[tuple[str, ...], list[dict[str, str]]] = defaultdict(list)
    for line in found:
        groups[line["pair"], line["size"], line["variant"]].append(line)
    names = ("partner_rate", "second_own", "second_sum", "first_own", "first_sum")
    lines = []
    for (pair, size, variant), each in groups.items():
        alone = {line["seed"]: float(line["second_own"]) for line in groups[pair, size, "alone"]}
        gains = [as_trained(line) - alone[line["seed"]] for line in each]
        cells = [spread(float(line[name]) for line in each) for name in names]
        lines.append((pair, size, variant, *cells, "" if variant == "alone" else interval(gains)))
    header = ("pair", "samples", "second task learned", *names, "as trained, minus alone")
    return markdown(header, lines)


def as_trained(line: Mapping[str, str]) -> float:
    """Return the score of the second task with the experts that most samples trained with."""
    summed = float(line["partner_rate"] or 0) > 50
    return float(line["second_sum" if summed else "second_own"])


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a table."""
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def write_page(runs: Path) -> None:
    """Fill the tables of the page from the finished runs and the files of the two studies."""
    fill("summary", summary_table(read_figures(runs)), PAGE)
    for part, make in (("rules", rules_table), ("pairs", pairs_table)):
        file = OUTPUT / "alike" / f"{part}.csv"
        if file.is_file():
            fill(part, make(file), PAGE)
