"""``routers.json``: the adapters of an export for servers that apply one LoRA to a request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dmole.storage.digests import FILE, file_digest, read_digests
from dmole.storage.files import check_name, read_json

ROUTERS = "routers.json"
"""Names the adapters of an export by gate set."""
ADAPTERS = "adapters"
"""The folder of the adapters."""
FORMAT = 1
"""Version of the file."""


@dataclass(frozen=True)
class Export:
    """What an export says about its adapters.

    Args:
        experts: Names of the experts, in the order of the run.
        adapters: Experts of each adapter, by its name.
        base: ``base_model_name_or_path`` of the adapters.
        weights: SHA-256 of the weights of the base model.
    """

    experts: tuple[str, ...]
    adapters: Mapping[str, tuple[str, ...]]
    base: str
    weights: str


def read_export(folder: Path) -> Export:
    """Return what an export says about its adapters, after a check of its router and settings.

    The adapters themselves are not read: the server that applies them may be on another machine.

    Raises:
        ValueError: If the folder is no export, a file of it was changed, or ``routers.json`` is
            not valid; names the file.
    """
    path = folder / ROUTERS
    if not path.is_file():
        raise ValueError(f"{folder} is no export: it has no {ROUTERS}; make it with dmole export")
    _verify(folder)
    content = read_json(path, "export")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path}: expected an export in format {FORMAT}")
    experts, adapters, served = (content.get(k) for k in ("experts", "adapters", "served_as"))
    base = content.get("base")
    weights = base.get("weights") if isinstance(base, dict) else None
    if not isinstance(experts, list) or not isinstance(adapters, dict) or not adapters:
        raise ValueError(f"{path}: experts must be a list of names, adapters one object")
    if not isinstance(served, str) or not isinstance(weights, str):
        raise ValueError(f"{path}: served_as and base.weights must be texts")
    for name in experts:
        check_name(name, f"{path}: expert name")
    for name, members in adapters.items():
        known = isinstance(members, list) and all(member in experts for member in members)
        if not known or not members or name != "+".join(members):
            raise ValueError(f"{path}: adapters must map names such as a+b to lists of experts")
    sets = {name: tuple(members) for name, members in adapters.items()}
    return Export(tuple(experts), sets, served, weights)


def _verify(folder: Path) -> None:
    """Raise unless the files of an export, but its adapters, are as they were made."""
    digests = read_digests(folder)
    if digests is None or ROUTERS not in digests.files:
        raise ValueError(f"{folder / FILE} does not list {ROUTERS}: the export is not whole")
    for name, expected in digests.files.items():
        if not name.startswith(f"{ADAPTERS}/") and file_digest(folder / name) != expected:
            raise ValueError(
                f"{folder / name} is not the file of this export: export the run again"
            )
