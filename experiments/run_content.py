"""Digests of the results of a run that do not depend on file formats.

Digests of whole files, as in `run_digests`, change with every key, format or name of a file. These
digests stay the same if a change only rearranges code.
"""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from dmole.storage.predictions import predicted_stages, read_stage

TABLES = {
    "plan": "allocation.csv",
    "curriculum": "curriculum.csv",
    "replay": "replay.csv",
    "routing": "routing.csv",
}
"""Tables by logical name; their column names do not count. A run may lack some of them."""

MATRICES = ("evaluation_matrix", "oracle_matrix")
PREDICTED = ("id", "prediction", "score", "gate_set")
FIGURES = ("AVG", "Last", "BWT", "per_task")

SHAPES = {
    "adapter_config.json": (
        *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules"),
    ),
    "mixture.json": ("layers",),
}
"""Keys of the ranks and scaling of an expert, by the file beside its tensors."""


def tensor_digest(path: Path) -> str:
    """Return the SHA-256 of names, shapes, types and values of the tensors in a file."""
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(path).items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def run_content(run: Path) -> dict[str, str]:
    """Return digests of the results of a finished run by logical name.

    Args:
        run: Run folder, ``<root>/<name>/version_<N>``.

    Raises:
        OSError: If matrices, metrics, router or the order of the experts are missing.
        KeyError: If a figure or a key of a prediction is missing.
        ValueError: If a table has no header.
    """
    return {
        **_experts(run / "experts"),
        **_router(run / "router"),
        **{
            name: _digest([[_value(cell) for cell in row] for row in _table(run / file)])
            for name, file in TABLES.items()
            if (run / file).is_file()
        },
        **{name: _digest(_matrix(run / f"{name}.csv")) for name in MATRICES},
        **_predictions(run),
        **_metrics(run / "metrics.json"),
    }


def _experts(folder: Path) -> dict[str, str]:
    """Return digests of the tensors and shapes of each expert, and of the order of all experts."""
    digests = {"experts": _digest(_json(folder / "experts.json"))}
    for path in sorted(folder.glob("*/*.safetensors")):
        digests[f"experts/{path.parent.name}"] = tensor_digest(path)
    for file, keys in SHAPES.items():
        for path in sorted(folder.glob(f"*/{file}")):
            content = _json(path)
            digests[f"experts/{path.parent.name}/shape"] = _digest([content[key] for key in keys])
    return digests


def _router(folder: Path) -> dict[str, str]:
    """Return digests of the tensors, and of the entry of each expert, such as its threshold."""
    tensors = {
        f"router/{path.stem}": tensor_digest(path) for path in sorted(folder.glob("*.safetensors"))
    }
    index = _json(folder / "router.json")
    return tensors | {"router": _digest(_leaves(index.get("experts", index.get("tasks"))))}


def _predictions(run: Path) -> dict[str, str]:
    digests = {}
    for stage in predicted_stages(run):
        for task, lines in sorted(read_stage(run, stage).items()):
            rows = [[line[key] for key in PREDICTED] for line in lines]
            digests[f"predictions/stage_{stage}/{task}"] = _digest(rows)
    return digests


def _metrics(path: Path) -> dict[str, str]:
    content = _json(path)
    return {f"metrics/{name}": _digest(content[name]) for name in FIGURES}


def _matrix(path: Path) -> list[list[float | str]]:
    """Return the names of the tasks, then the scores; a cell without a score is an empty string."""
    (_, *names), *rows = _rows(path)
    return [[*names], *([_value(cell) for cell in row] for row in rows)]


def _table(path: Path) -> list[list[str]]:
    """Return the rows of a table, of `routing.csv` those of test samples without their phase."""
    header, *rows = _rows(path)
    if "phase" not in header:
        return rows
    return [row[:-1] for row in rows if row[-1] == "test"]


def _rows(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    if not rows:
        raise ValueError(f"{path} has no header")
    return rows


def _value(cell: str) -> float | str:
    """Return the number of a cell in any notation, or else its text."""
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
