"""Files of a router: an index in JSON and one tensor file per task, each replaced atomically."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dmole.files import atomic_path, write_json

INDEX = "router.json"
FORMAT = 1


def write_index(folder: Path, content: Mapping[str, Any]) -> None:
    """Write the index, last of a router's files: it names only files that exist."""
    write_json(folder / INDEX, {"format": FORMAT, **content})


def read_index(folder: Path, router: str) -> dict[str, Any]:
    """Return the index.

    Raises:
        ValueError: If it is missing, unreadable or of another router or format.
    """
    path = folder / INDEX
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found, version = content["router"], content["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"cannot read router {path}: {error}") from error
    if version != FORMAT:
        raise ValueError(f"router {path} has format {version}, expected {FORMAT}")
    if found != router:
        raise ValueError(f"router {path} was saved by {found}, not by {router}")
    return dict(content)


def write_tensors(folder: Path, name: str, tensors: Mapping[str, Tensor]) -> None:
    """Write ``<name>.safetensors``."""
    with atomic_path(folder / f"{name}.safetensors") as temporary:
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, temporary)


def read_tensors(folder: Path, name: str) -> dict[str, Tensor]:
    """Return the tensors of ``<name>.safetensors``.

    Raises:
        ValueError: If the file is missing or damaged.
    """
    path = folder / f"{name}.safetensors"
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot read router file {path}: {error}") from error
