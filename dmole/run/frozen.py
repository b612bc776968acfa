"""The experts of a run that no longer train: one file for each, written once, beside checkpoints.

``last.ckpt`` is written after every phase. It holds what trains, and the digests of these files,
so its size does not grow by the experts and routers of all earlier stages.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from dmole.storage.files import check_name
from dmole.storage.tensors import DigestCache, read_tensor_file, tensor_digest, write_tensor_file
from dmole.storage.values import parse_json

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from torch import Tensor

FOLDER = "experts"
"""Folder of the files, beside ``last.ckpt``."""

KEY = "frozen"
"""Part of a checkpoint that has the digest of each file, by expert."""

_EXPERT, _ROUTER = "expert/", "router/"
"""Beginnings of the names of tensors: those of the expert, and those of its router entry."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_FILE = re.compile(r".+_[0-9a-f]{16}\.safetensors", re.DOTALL)
Stamp = tuple[int, int, int]


class FrozenExperts:
    """Writes the files of frozen experts, and knows which are there."""

    def __init__(self) -> None:
        self._digests = DigestCache(tensor_digest)
        self._stamps: dict[Path, Stamp | None] = {}

    def split(
        self, content: Mapping[str, Any], experts: Collection[str], checkpoint: Path
    ) -> dict[str, Any]:
        """Write the files of frozen experts that are not there; return what is left to save.

        Args:
            content: A whole checkpoint after a phase.
            experts: Names of the frozen experts.
            checkpoint: The file of the checkpoint.

        Returns:
            The content without the tensors of these experts, and with the digests of their files.
        """
        state: dict[str, Tensor] = {}
        apart: dict[str, dict[str, Tensor]] = {name: {} for name in experts}
        for key, value in content["state_dict"].items():
            name, _, inner = key.partition("/")
            if name in apart:
                apart[name][f"{_EXPERT}{inner}"] = value
            else:
                state[key] = value
        router = dict(content["router"])
        entries = dict(router.get("experts", {}))
        digests = {}
        for name, tensors in apart.items():
            if entries.get(name):
                tensors |= {f"{_ROUTER}{key}": value for key, value in entries[name].items()}
                entries[name] = {}  # keeps its place in the order
            digests[name] = self._digests.of(name, tensors)
            self._write(_path(checkpoint, name, digests[name]), name, tensors, digests[name])
        if "experts" in router:
            router["experts"] = entries
        return {
            **content,
            "architecture": json.dumps(content["architecture"]),
            "state_dict": state,
            "router": router,
            KEY: digests,
        }

    def _write(self, path: Path, name: str, tensors: Mapping[str, Tensor], digest: str) -> None:
        if path in self._stamps and self._stamps[path] == _stamp(path):
            return
        if not _is_whole(path, name, digest):
            write_tensor_file(path, tensors, name)
        self._stamps[path] = _stamp(path)

    def keep_only(self, content: Mapping[str, Any], checkpoint: Path) -> None:
        """Remove files that a checkpoint does not name, such as those of experts that train on.

        Files with other names stay, and so do all in a folder that is a link: it may be that of
        another run.
        """
        named = {_path(checkpoint, name, digest) for name, digest in content[KEY].items()}
        folder = checkpoint.parent / FOLDER
        for path in () if folder.is_symlink() else folder.glob("*.safetensors"):
            if path not in named and _FILE.fullmatch(path.name):
                path.unlink(missing_ok=True)
        self._stamps = {path: stamp for path, stamp in self._stamps.items() if path in named}

    def lacks_files(self) -> bool:
        """Return whether a file was deleted or changed since it was written."""
        return any(_stamp(path) != stamp for path, stamp in self._stamps.items())


def join(content: dict[str, Any], checkpoint: Path) -> dict[str, Any]:
    """Return the whole checkpoint, with the tensors of the frozen experts from their files.

    Args:
        content: What :meth:`FrozenExperts.split` returned.
        checkpoint: The file of the checkpoint.

    Raises:
        ValueError: If a file is missing, damaged or of another version of its expert; names it.
    """
    rest = {key: value for key, value in content.items() if key != KEY}
    if isinstance(rest.get("architecture"), str):  # one text, since thousands of numbers are slow
        rest["architecture"] = parse_json(rest["architecture"])
    digests = content.get(KEY) or {}
    if not digests:
        return rest
    state, router = dict(content["state_dict"]), dict(content["router"])
    entries = dict(router.get("experts", {}))
    for name, digest in digests.items():
        check_name(name, f"{checkpoint}: expert name")
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            raise ValueError(f"{checkpoint}: the digest of expert {name!r} is {digest!r:.80}")
        path = _path(checkpoint, name, digest)
        tensors = read_tensor_file(path, name)
        if tensor_digest(tensors) != digest:
            raise ValueError(f"{path} is not the file of expert {name!r} that {checkpoint} names")
        state |= {
            f"{name}/{key.removeprefix(_EXPERT)}": value
            for key, value in tensors.items()
            if key.startswith(_EXPERT)
        }
        entry = {
            key.removeprefix(_ROUTER): value
            for key, value in tensors.items()
            if key.startswith(_ROUTER)
        }
        if entry:
            entries[name] = entry
    if entries:
        router["experts"] = entries
    return {**rest, "state_dict": state, "router": router}


def _path(checkpoint: Path, name: str, digest: str) -> Path:
    return checkpoint.parent / FOLDER / f"{name}_{digest[:16]}.safetensors"


def _is_whole(path: Path, name: str, digest: str) -> bool:
    """Return whether a file from an earlier process holds the tensors of a digest."""
    if not path.exists():
        return False
    try:
        return tensor_digest(read_tensor_file(path, name)) == digest
    except ValueError:
        return False


def _stamp(path: Path) -> Stamp | None:
    """Return size, time and inode of a file; None if it is missing."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ino
