"""The lines at the end of a run: its figures, its costs and where its report is."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmole.metrics.evaluated import reasons, statement
from dmole.run.clock import INNER_PHASES

if TYPE_CHECKING:
    from dmole.run.clock import Clock
    from dmole.run.state import SequenceState

log = logging.getLogger("dmole")

FIGURES = ("Last", "AVG", "BWT")
REPORT = "report.html"

_HEAD, _CELL = 10, 9


def log_results(state: SequenceState, metrics: Mapping[str, Any]) -> None:
    """Log the closing lines of a finished run, in the first process alone.

    Args:
        state: The finished run.
        metrics: Content of its ``metrics.json``.
    """
    if state.is_global_zero:
        lines = [
            *figure_lines(metrics),
            *missing_lines(metrics),
            *cost_lines(state.clock),
            *next_lines(state.run_dir),
        ]
        for line in lines:
            log.info("%s", line)


def figure_lines(metrics: Mapping[str, Any]) -> list[str]:
    r"""Return a table of the figures of a run with routed and with oracle gates.

    Args:
        metrics: Content of ``metrics.json``.

    Example:
        >>> oracle = {"Last": 70.0, "AVG": 55.0, "BWT": None}
        >>> print("\n".join(figure_lines({"Last": 65.25, "AVG": 50.0, "oracle": oracle})))
                       Last      AVG      BWT
        routed        65.25    50.00        -
        oracle        70.00    55.00        -
    """
    rows = {"routed": metrics, "oracle": metrics.get("oracle") or {}}
    return [
        _row("", FIGURES),
        *(_row(name, [_figure(row.get(key)) for key in FIGURES]) for name, row in rows.items()),
    ]


def missing_lines(metrics: Mapping[str, Any]) -> list[str]:
    """Return which tasks were evaluated and why figures are missing; none if these are all tasks.

    Args:
        metrics: Content of ``metrics.json``.
    """
    text = statement(metrics)
    return [text, *reasons(metrics)] if text else []


def cost_lines(clock: Clock) -> list[str]:
    """Return the seconds of a run and of its phases, and the parameters that it trained.

    Example:
        >>> from dmole.run.clock import Clock, Lap
        >>> clock = Clock()
        >>> clock.laps = [Lap(1, "paint", "allocate", 2.0), Lap(1, "paint", "train", 9.0)]
        >>> clock.costs.record(trainable={"paint": 92928, "count": 86528})
        >>> cost_lines(clock)
        ['seconds   9.0: train 9.0', 'trained   86,528 to 92,928 parameters a stage']
    """
    phases: dict[str, float] = {}
    for lap in clock.laps:
        if lap.phase not in INNER_PHASES:
            phases[lap.phase] = phases.get(lap.phase, 0.0) + lap.seconds
    each = ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in phases.items())
    lines = [f"{'seconds':<{_HEAD}}{sum(phases.values()):.1f}: {each}"] if phases else []
    if counts := sorted(clock.costs.trainable.values()):
        least, most = f"{counts[0]:,}", f"{counts[-1]:,}"
        text = most if least == most else f"{least} to {most}"
        lines.append(f"{'trained':<{_HEAD}}{text} parameters a stage")
    return lines


def next_lines(run: Path) -> list[str]:
    """Return where the report of a run is, if it has one, and how to compare it."""
    page = run / REPORT
    found = [f"{'report':<{_HEAD}}{page}"] if page.is_file() else []
    return [*found, f"{'compare':<{_HEAD}}dmole compare {shlex.quote(str(run))} OTHER_RUN"]


def _row(name: str, cells: Sequence[str]) -> str:
    return f"{name:<{_HEAD}}" + "".join(f"{cell:>{_CELL}}" for cell in cells)


def _figure(value: float | None) -> str:
    """Return a figure in percent with two digits; NaN and None as a dash."""
    return "-" if value is None or value != value else f"{value:.2f}"
