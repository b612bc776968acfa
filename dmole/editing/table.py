"""``dmole experts RUN list``: the experts of a run, read without torch and without a model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

from safetensors import safe_open

from dmole.modality import MODALITIES, Modality
from dmole.storage.digests import read_digests
from dmole.storage.disabled import read_disabled
from dmole.storage.files import check_name
from dmole.storage.reading import check_file, read_json, refusing
from dmole.storage.routing_table import FILE as ROUTING
from dmole.storage.routing_table import read_test_counts
from dmole.storage.versions import newest_versions, read_updates, versions_of

_VISION = re.compile(r"(^|\.)(vision_tower|vision_model|visual)\.")
_LANGUAGE = re.compile(r"(^|\.)(language_model|text_model)\.")
_BLOCK = re.compile(r".*?\.\d+(?=\.|$)")
_MOST = 4096  # experts of a run


@dataclass(frozen=True)
class ExpertRow:
    """What a run folder says about one of its experts.

    Args:
        name: Name of the expert.
        stage: Stage that trained it; None for an expert that every stage trains, or where the run
            does not say.
        tasks: Tasks of that stage; those of earlier versions before them.
        parameters: Number of its parameters.
        ranks: Ranks of its linears, each once.
        tokens: Number of tokens of its soft prompt.
        blocks: Blocks with at least one of its linears, by modality.
        threshold: Largest loss at which the router accepts a sample; None for other routers.
        samples: Test samples of its tasks at the last stage.
        routed: Share of them, in percent, that use the expert; None if there are none.
        foreign: Test samples of other tasks that use it at the last stage.
        starts_from: Past expert whose values it started from, if any.
        replaced_by: Newest version of it, which answers its samples; None if it is the newest.
        disabled: Whether it is switched off.
    """

    name: str
    stage: int | None
    tasks: list[str]
    parameters: int
    ranks: list[int]
    tokens: int
    blocks: dict[str, int]
    threshold: float | None
    samples: int
    routed: float | None
    foreign: int
    starts_from: str | None
    replaced_by: str | None
    disabled: bool


def expert_rows(run: Path) -> list[ExpertRow]:
    """Return the experts of a run, in their order.

    Args:
        run: The run folder, which anyone may have written.

    Raises:
        ValueError: If a file is missing or cannot be read; names it.
    """
    index = run / "experts" / "experts.json"
    names = read_json(index, "experts")
    if not isinstance(names, list) or len(names) > _MOST:
        raise ValueError(f"{index}: expected a list of at most {_MOST} names")
    stages, disabled, updates = _stages(run), read_disabled(run), read_updates(run, names)
    newest = newest_versions((n for n in map(str, names) if n not in disabled), updates)
    thresholds, starts, counts = _thresholds(run), _starts(run), _last_counts(run)
    rows = []
    for name in names:
        check_name(name, f"{index}: expert name")
        stage = stages[name][0] if name in stages else None
        past = [stages[version][1] for version in versions_of(name, updates) if version in stages]
        tasks = [task for version in reversed(past) for task in version]
        own = [(gates, n) for task, gates, n in counts if task in tasks]
        samples, used = sum(n for _, n in own), sum(n for gates, n in own if name in gates)
        foreign = sum(n for task, gates, n in counts if task not in tasks and name in gates)
        shapes = _shapes(run / "experts" / name)
        rows.append(
            ExpertRow(
                name,
                stage,
                tasks,
                sum(prod(shape) for _, _, shape in shapes),
                sorted({shape[0] for _, part, shape in shapes if part == "a" and shape}),
                sum(shape[0] for _, part, shape in shapes if part == "t" and shape),
                blocks_of(sorted({path for path, part, _ in shapes if part != "t"})),
                thresholds.get(name),
                samples,
                100.0 * used / samples if samples else None,
                foreign,
                starts.get(name),
                newest[name] if newest.get(name, name) != name else None,
                name in disabled,
            )
        )
    return rows


def rows_as_json(rows: Sequence[ExpertRow]) -> list[dict[str, Any]]:
    """Return the rows as plain values."""
    return [asdict(row) for row in rows]


def table_text(rows: Sequence[ExpertRow]) -> str:
    """Return the rows as a table for a terminal."""
    header = ["expert", "stage", "tasks", "parameters", "rank", "blocks", "threshold", "routed"]
    lines = [[*header, "others", "starts from", "state"]]
    for row in rows:
        blocks = " ".join(f"{name} {count}" for name, count in row.blocks.items())
        lines.append(
            [
                row.name,
                "-" if row.stage is None else str(row.stage),
                ",".join(row.tasks) or "-",
                f"{row.parameters:,}",
                _size(row),
                blocks or "-",
                "-" if row.threshold is None else f"{row.threshold:.4g}",
                "-" if row.routed is None else f"{row.routed:.1f}%",
                str(row.foreign),
                row.starts_from or "-",
                _state(row),
            ]
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    padded = (zip(line, widths, strict=True) for line in lines)
    return "\n".join("  ".join(f"{cell:<{w}}" for cell, w in line).rstrip() for line in padded)


def _size(row: ExpertRow) -> str:
    prompt = [f"{row.tokens} tokens"] if row.tokens else []
    return ",".join([*map(str, row.ranks), *prompt]) or "-"


def _state(row: ExpertRow) -> str:
    if row.disabled:
        return "disabled"
    return "on" if row.replaced_by is None else f"replaced by {row.replaced_by}"


def blocks_of(paths: Sequence[str]) -> dict[str, int]:
    """Return the number of blocks of each modality that hold one of the linears.

    The paths alone tell: a block is a path up to its first number, in the projector the module
    around the linear.

    Args:
        paths: Full paths of linears.

    Example:
        >>> blocks_of(["model.visual.blocks.0.mlp", "model.language_model.layers.3.q_proj"])
        {'vision': 1, 'language': 1}
    """
    blocks = {(_modality(path), _block(path)) for path in paths}
    counts = {name: sum(found == name for found, _ in blocks) for name in MODALITIES}
    return {name: count for name, count in counts.items() if count}


def _modality(path: str) -> Modality:
    if _VISION.search(path) and "merger" not in path:
        return "vision"
    return "language" if _LANGUAGE.search(path) else "projector"


def _block(path: str) -> str:
    found = _BLOCK.match(path)
    return found[0] if found else path.rpartition(".")[0]


def _shapes(folder: Path) -> list[tuple[str, str, tuple[int, ...]]]:
    """Return path, ``a``, ``b``, ``r`` for a router or ``t`` for a soft prompt, and shape."""
    mixture = folder / "mixture.safetensors"
    file = mixture if mixture.exists() else folder / "adapter_model.safetensors"
    check_file(file)
    with refusing(file, "expert"), safe_open(file, framework="numpy") as tensors:
        keys = list(tensors.keys())
        return [_split(key, tuple(tensors.get_slice(key).get_shape())) for key in keys]


def _split(key: str, shape: tuple[int, ...]) -> tuple[str, str, tuple[int, ...]]:
    path, _, part = key.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".")
    return path, part.lower().removeprefix("lora_")[:1], shape


def _stages(run: Path) -> dict[str, tuple[int, list[str]]]:
    """Return number and tasks of the last stage of each expert; none for an older run."""
    digests = read_digests(run)
    found: dict[str, tuple[int, list[str]]] = {}
    for number, stage in enumerate(digests.stages if digests else (), start=1):
        tasks, where = stage.get("tasks"), f"{run / 'digests.json'}: stage {number}"
        if not isinstance(tasks, list):
            raise ValueError(f"{where} has no list of tasks")
        expert = check_name(stage.get("expert"), where)
        earlier = found.get(expert, (0, []))[1]
        names = [check_name(task, where) for task in tasks]
        found[expert] = (number, list(dict.fromkeys([*earlier, *names])))
    return found


def _thresholds(run: Path) -> dict[str, float]:
    """Return the thresholds of the router, times the scale that the run sets."""
    index = run / "router" / "router.json"
    content = read_json(index, "router")
    entries = content.get("experts", content.get("tasks")) if isinstance(content, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"router {index}: 'experts' must be a list of objects with a name")
    scale = _threshold_scale(run)
    found = ((entry.get("name"), entry.get("threshold")) for entry in entries)
    return {str(name): value * scale for name, value in found if _is_number(value)}


def _threshold_scale(run: Path) -> float:
    path = run / "model.json"
    if not path.exists():
        return 1.0
    part: Any = read_json(path)
    for key in ("model", "router", "settings"):
        part = part.get(key) if isinstance(part, Mapping) else None
    inner = part.get("router") if isinstance(part, Mapping) else None  # inside CommonExpertRouter
    part = inner.get("settings") if isinstance(inner, Mapping) else part
    scale = part.get("threshold_scale", 1.0) if isinstance(part, Mapping) else 1.0
    return float(scale) if _is_number(scale) else 1.0


def _starts(run: Path) -> dict[str, str]:
    path = run / "metrics.json"
    content = read_json(path, "metrics") if path.exists() else {}
    experts = content.get("experts") if isinstance(content, dict) else None
    pairs = experts.items() if isinstance(experts, dict) else ()
    found = {name: entry.get("starts_from") for name, entry in pairs if isinstance(entry, dict)}
    return {name: str(parent) for name, parent in found.items() if parent is not None}


def _last_counts(run: Path) -> list[tuple[str, list[str], int]]:
    """Return task, experts and number of the test samples at the last stage."""
    path = run / ROUTING
    rows = list(read_test_counts(path)) if path.exists() else []
    last = max((stage for stage, *_ in rows), default=0)
    return [(task, gates.split("+"), n) for stage, task, gates, n in rows if stage == last]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
