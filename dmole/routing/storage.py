"""Files of a router: an index in JSON and one tensor file per expert, each replaced atomically."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from dmole.storage.files import check_name, read_json, write_json
from dmole.storage.tensors import read_tensor_file, write_tensor_file

INDEX = "router.json"
FORMAT = 2
"""Version of the index. Version 1 has the key ``tasks`` instead of ``experts`` and is read, too."""


def write_index(folder: Path, content: Mapping[str, Any]) -> None:
    """Write the index. It is the last file of a router, so it names only files that exist."""
    write_json(folder / INDEX, {"format": FORMAT, **content})


def read_index(folder: Path, router: str) -> dict[str, Any]:
    """Return the index.

    Raises:
        ValueError: If the index is missing, unreadable or of another router or format.
    """
    path = folder / INDEX
    content = read_json(path, "router")
    try:
        saved_by, version = content["router"], content["format"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"cannot read router {path}: it is not the index of a router") from error
    if version == 1 and "tasks" in content:
        content = {"experts": content["tasks"], **content}
    elif version != FORMAT:
        raise ValueError(f"router {path} has format {version}, expected {FORMAT}")
    if saved_by != router:
        raise ValueError(f"router {path} was saved by {saved_by}, not by {router}")
    experts = content.get("experts")
    if not isinstance(experts, list) or not all(
        isinstance(entry, dict) and "name" in entry for entry in experts
    ):
        raise ValueError(f"router {path}: 'experts' must be a list of objects with a name")
    return dict(content)


def write_tensors(folder: Path, name: str, tensors: Mapping[str, Tensor]) -> None:
    """Write ``<name>.safetensors``."""
    write_tensor_file(folder / f"{check_name(name, 'router expert')}.safetensors", tensors, name)


def read_tensors(folder: Path, name: str) -> dict[str, Tensor]:
    """Return the tensors of ``<name>.safetensors``.

    Raises:
        ValueError: If the file is missing or damaged, belongs to another expert, or the name points
            outside the folder.
    """
    name = check_name(name, f"router {folder / INDEX}: expert name")
    return read_tensor_file(folder / f"{name}.safetensors", name)
