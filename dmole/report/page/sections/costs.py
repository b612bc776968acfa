"""What the run costs: parameters, time of each phase, memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from dmole.messages import excerpt
from dmole.report.page.axes import Axis, row_axis
from dmole.report.page.markup import (
    Cell,
    Row,
    html,
    join,
    label,
    long_table,
    number,
    number_cell,
    table,
)
from dmole.report.page.record import RunRecord
from dmole.report.page.section import Section
from dmole.report.page.svg import Plot, legend

INNER = ("allocate", "embed")
"""Phases that run inside the phase that ends next, whose seconds include theirs."""

PHASES = ("allocate", "train", "embed", "router", "evaluate")
"""Phases in the order of the figure; a phase of another name follows."""

MOST = 60
"""Most stages that are drawn; the table has all."""

_Stages = dict[tuple[int, str], dict[str, float]]
"""Seconds of each phase by stage and its name."""


def _draw(record: RunRecord) -> Markup | None:
    timing = record.timing
    if timing is None:
        return None
    stages = seconds_of(timing.get("phases") or [])
    parts = [_totals(timing), _trainable(record, timing)]
    if stages:
        parts.insert(1, html('<div class="beside">{}{}</div>', _bars(stages), _table(stages)))
    return join(parts)


def seconds_of(phases: Sequence[Mapping[str, object]]) -> _Stages:
    """Return the seconds of each phase without those of phases inside it.

    Args:
        phases: ``phases`` of ``timing.json``, in the order in which they ended.

    Raises:
        ValueError: If the stage or the seconds of a phase are no numbers.

    Example:
        >>> inner = {"stage": 1, "name": "a", "phase": "embed", "seconds": 2}
        >>> seconds_of([inner, {"stage": 1, "name": "a", "phase": "train", "seconds": 5}])
        {(1, 'a'): {'embed': 2.0, 'train': 3.0}}
    """
    stages: _Stages = {}
    inside = 0.0
    for lap in phases:
        stage, seconds, phase = lap.get("stage"), lap.get("seconds"), str(lap.get("phase"))
        if not isinstance(stage, int) or not isinstance(seconds, int | float):
            raise ValueError(f"timing.json: no stage and seconds in phase {excerpt(phase)}")
        of_stage = stages.setdefault((stage, str(lap.get("name"))), {})
        own = seconds if phase in INNER else max(0.0, seconds - inside)
        inside = inside + seconds if phase in INNER else 0.0
        of_stage[phase] = of_stage.get(phase, 0.0) + own
    return stages


def _names(stages: _Stages) -> list[str]:
    found = dict.fromkeys(phase for phases in stages.values() for phase in phases)
    return [phase for phase in dict.fromkeys([*PHASES, *found]) if phase in found]


def _bars(stages: _Stages) -> Markup:
    """Return one bar for each stage, divided by its phases."""
    shown, phases = list(stages)[:MOST], _names(stages)
    longest = max(1e-3, *(sum(stages[stage].values()) for stage in shown))
    names = [f"{index} {name}" for index, name in shown]
    title = "Seconds of each stage, by phase"
    axis = Axis("wall-clock time (seconds)", 0.0, longest)
    plot = Plot(title, axis, row_axis(names, "stage"), 70 + 26 * len(shown))
    for row, stage in enumerate(shown):
        start = 0.0
        for style, phase in enumerate(phases):
            seconds = stages[stage].get(phase, 0.0)
            if seconds:
                tip = f"stage {stage[0]} {label(stage[1])}, {phase}: {number(seconds, 2)} s"
                plot.bar((start, row), (start + seconds, row), 16, style, tip)
            start += seconds
    return html("<div><h4>{}</h4>{}{}</div>", title, plot.markup(), legend(phases, bars=True))


def _table(stages: _Stages) -> Markup:
    phases = _names(stages)
    rows = [
        Row(
            [
                Cell(f"{index} {label(name)}", index),
                *(number_cell(found.get(phase, 0.0), 2) for phase in phases),
                number_cell(sum(found.values()), 2),
            ]
        )
        for (index, name), found in stages.items()
    ]
    header = ["Stage", *(f"{label(phase)} (s)" for phase in phases), "all (s)"]
    return html("<div>{}</div>", long_table("Seconds of each phase", header, rows))


def _totals(timing: Mapping[str, Any]) -> Markup:
    """Return time, memory and numbers of parameters of the whole run."""
    parameters = timing.get("parameters") or {}
    speed = timing.get("train_samples_per_second")
    memory = timing.get("peak_memory_bytes")
    facts = [
        ("Time (s)", timing.get("seconds"), 0, "all phases, evaluation included"),
        ("Training speed (samples/s)", speed, 1, "without allocation and embedding"),
        ("Peak memory (MiB)", _scaled(memory), 0, "of the GPU; without one, of the process"),
        ("Base model (parameters)", parameters.get("base"), 0, "frozen"),
        ("Base model and experts (parameters)", parameters.get("total"), 0, "on disk and loaded"),
        ("Active (parameters)", parameters.get("active"), 0, "used by an average test sample"),
    ]
    rows = [
        Row([Cell(name), number_cell(float(value), digits), Cell(text, kind="text")])
        for name, value, digits, text in facts
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    return table("Cost of the run", ["Cost", "Value", "Meaning"], rows)


def _scaled(count: object) -> float | None:
    return count / 2**20 if isinstance(count, int | float) else None


def _trainable(record: RunRecord, timing: Mapping[str, Any]) -> Markup:
    """Return the number of trained parameters by expert."""
    parameters = timing.get("parameters") or {}
    trainable, base = parameters.get("trainable"), parameters.get("base")
    if not isinstance(trainable, Mapping) or not trainable:
        return Markup()
    share = math.nan if not base else 100.0 / base
    rows = [
        Row(
            [Cell(label(expert)), number_cell(count, 0), number_cell(share * count, 2)],
            record.task_of_expert(expert),
        )
        for expert, count in trainable.items()
    ]
    header = ["Expert", "Trainable parameters", "Share of the base model (%)"]
    return long_table("Parameters that each stage trains", header, rows)


COSTS = Section(
    "costs",
    "Cost: parameters, time and memory",
    "A stage trains its expert, and the one that all stages share if there is one. An average test "
    "sample uses the base model and the experts that the router chose for it. Times are those of "
    "this machine.",
    _draw,
)
