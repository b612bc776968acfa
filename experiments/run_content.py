"""What a run learned and found out, as digests of contents: how a file is written does not count.

Digests by file, as `run_digests` takes them, change with each key, format or name of a file. These
stay the same if only the code was rearranged.
"""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

TABLES = {
    "plan": "allocation.csv",
    "curriculum": "curriculum.csv",
    "replay": "replay.csv",
    "routing": "routing.csv",
}
"""Tables whose column names do not count; not every run has all of them."""

MATRICES = ("evaluation_matrix", "oracle_matrix")
PREDICTED = ("id", "prediction", "score", "gate_set")
FIGURES = ("AVG", "Last", "BWT", "per_task")

SHAPES = {
    "adapter_config.json": (
        *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules"),
    ),
    "mixture.json": ("layers",),
}
"""What tells ranks and scaling of an expert, by the file that lies beside its tensors."""


def tensor_digest(path: Path) -> str:
    """Return a SHA-256 of names, shapes, types and values of the tensors in a file."""
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(path).items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def run_content(run: Path) -> dict[str, str]:
    """Return a digest by logical name of all that a finished run learned and found out.

    Args:
        run: Its folder, ``<root>/<name>/version_<N>``.

    Raises:
        OSError: If matrices, metrics, router or the order of the experts are not there.
        KeyError: If one of the figures or of the keys of a prediction is not there.
        ValueError: If a table has no header.
    """
    return {
        **_experts(run / "experts"),
        **_router(run / "router"),
        **{
            name: _digest([[_value(cell) for cell in row] for row in _rows(run / file)[1:]])
            for name, file in TABLES.items()
            if (run / file).is_file()
        },
        **{name: _digest(_matrix(run / f"{name}.csv")) for name in MATRICES},
        **_predictions(run / "predictions"),
        **_metrics(run / "metrics.json"),
    }


def _experts(folder: Path) -> dict[str, str]:
    """Return digests of each expert's tensors and shapes, and of the order of all experts."""
    found = {"experts": _digest(_json(folder / "experts.json"))}
    for path in sorted(folder.glob("*/*.safetensors")):
        found[f"experts/{path.parent.name}"] = tensor_digest(path)
    for file, keys in SHAPES.items():
        for path in sorted(folder.glob(f"*/{file}")):
            content = _json(path)
            found[f"experts/{path.parent.name}/shape"] = _digest([content[key] for key in keys])
    return found


def _router(folder: Path) -> dict[str, str]:
    """Return digests of its tensors, and of what it notes of each task, thresholds among it."""
    tensors = {
        f"router/{path.stem}": tensor_digest(path) for path in sorted(folder.glob("*.safetensors"))
    }
    index = _json(folder / "router.json")
    return tensors | {"router": _digest(_leaves(index.get("experts", index.get("tasks"))))}


def _predictions(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(folder.glob("*/*.jsonl")):
        lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        rows = [[line[key] for key in PREDICTED] for line in lines]
        found[f"predictions/{path.parent.name}/{path.stem}"] = _digest(rows)
    return found


def _metrics(path: Path) -> dict[str, str]:
    content = _json(path)
    return {f"metrics/{name}": _digest(content[name]) for name in FIGURES}


def _matrix(path: Path) -> list[list[float | str]]:
    """Return the names of the tasks, then the scores; cells without one are empty words."""
    (_, *names), *rows = _rows(path)
    return [[*names], *([_value(cell) for cell in row] for row in rows)]


def _rows(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    if not rows:
        raise ValueError(f"{path} has no header")
    return rows


def _value(cell: str) -> float | str:
    """Return the number that a cell holds, however it is written, or else its words."""
    try:
        return float(cell)
    except ValueError:
        return cell


def _leaves(content: Any) -> list[Any]:
    """Return the values of nested lists and mappings in order, without the keys."""
    if isinstance(content, dict):
        content = list(content.values())
    if not isinstance(content, list):
        return [content]
    return [leaf for inner in content for leaf in _leaves(inner)]


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
