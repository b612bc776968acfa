"""Checkpoint files: written atomically, verified, and read without executing code."""

from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from dmole.messages import first_line
from dmole.run.frozen import join
from dmole.storage.content import content_digest, not_finite, on_host
from dmole.storage.files import atomic_path

FORMAT = 5
"""Version of the layout.

Version 4 holds the tensors of all experts, of which version 5 has files. Version 3 has no digest.
Version 2 is converted on reading.
"""

_DIGEST = "sha256"
_LEARNED = ("state_dict", "router", "optimizer_states", "callbacks")
"""Parts whose tensors hold finite numbers only."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes Lightning's checkpoints; the old file stays until the new one is complete."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint."""
        save_checkpoint(checkpoint, Path(path))


def save_checkpoint(content: dict[str, Any], path: Path) -> None:
    """Write a checkpoint with its digest; the old file stays until the new one is complete.

    The file does not depend on the devices of the tensors.

    Raises:
        ValueError: If a number in a tensor of experts, router, optimizer or callbacks is not
            finite.
        OSError: If it cannot be written, for example because the disk is full; names the file.
    """
    content = on_host(content)  # once, for digest and file
    _check_finite(content, f"{path} is not written")
    content = {**content, _DIGEST: content_digest(content)}
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch closes the archive after an error, which fails too
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise


def read_checkpoint(file: Path) -> dict[str, Any]:
    """Return the whole content of a checkpoint without executing code from it.

    The tensors of frozen experts come from the files beside it, see `dmole.run.frozen`.

    Raises:
        ValueError: If the file is missing, damaged, changed since it was written, or no checkpoint
            of a sequence, or a number in a tensor of experts, router, optimizer or callbacks is
            not finite.
    """
    if not file.is_file():
        raise ValueError(f"there is no checkpoint {file}")
    try:
        _verify(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's message recommends to load the file with code execution
        match = re.search(r"(?:GLOBAL|class|function) ([\w.]+)", str(error))
        name = f" ({match[1]})" if match else ""
        raise ValueError(
            f"cannot read checkpoint {file}: it holds more than tensors and plain values{name}, "
            "and dmole executes no code from a checkpoint"
        ) from error
    except Exception as error:  # torch raises many types of error for damaged files
        raise ValueError(f"cannot read checkpoint {file}: {first_line(error)}") from error
    if not isinstance(content, dict) or content.get("format") not in (2, 3, 4, FORMAT):
        raise ValueError(f"{file} is not a checkpoint of a sequence of this version")
    _check_finite(content, f"cannot use checkpoint {file}")
    stated, version = content.pop(_DIGEST, None), content["format"]
    if version >= 4 and stated != content_digest(content):
        raise ValueError(
            f"cannot use checkpoint {file}: its content was changed after it was written"
        )
    if version == 2:
        content = _with_key_router(_converted(content))
    return join({**content, "format": FORMAT}, file)


def peek_checkpoint(file: Path) -> dict[str, Any]:
    """Return the content of a checkpoint without reading its tensors or verifying it.

    For a first look at its plan; whoever uses the content calls :func:`read_checkpoint`.

    Returns:
        The content; empty if it cannot be read, which :func:`read_checkpoint` reports.
    """
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # of many types, as there
        return {}
    return content if isinstance(content, dict) else {}


def _check_finite(content: dict[str, Any], what: str) -> None:
    for part in _LEARNED:
        place = not_finite(content.get(part), part)
        if place is not None:
            raise ValueError(f"{what}: tensor {place} holds a number that is not finite")


def _converted(content: Any) -> Any:
    """Return content of version 2 with the names of version 3.

    Version 2 named experts after tasks: ``...experts.task_<name>...`` in the names of tensors,
    ``tasks`` in the state of a router.
    """
    if isinstance(content, list):
        return [_converted(entry) for entry in content]
    if not isinstance(content, dict):
        return content
    router = content.keys() == {"kind", "tasks"}
    names = {"tasks": "experts"} if router else {}
    return {
        names.get(key, key.replace(".experts.task_", ".experts.expert_"))
        if isinstance(key, str)
        else key: _converted(value)
        for key, value in content.items()
    }


def _with_key_router(content: dict[str, Any]) -> dict[str, Any]:
    """Return content whose ``KeyRouter`` has the state of version 3; in version 2 it had keys."""
    router = content.get("router")
    if not isinstance(router, dict) or router.keys() != {"keys"}:
        return content
    experts = {name: {"key": key} for name, key in router["keys"].items()}
    return {**content, "router": {"kind": {}, "experts": experts}}


def _verify(file: Path) -> None:
    """Refuse a damaged file. Torch writes checksums but does not verify them.

    Raises:
        ValueError: If the file is not an archive as torch writes it, or a checksum is wrong.
    """
    if not zipfile.is_zipfile(file):
        raise ValueError("it is cut short, or no checkpoint")
    with zipfile.ZipFile(file) as archive:
        parts = archive.infolist()
        if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
            raise ValueError("it is compressed, which torch never does")
        if any(part.external_attr or part.is_dir() for part in parts):
            raise ValueError("it holds folders, whose content torch does not read")
        if sum(part.file_size for part in parts) > file.stat().st_size:
            raise ValueError("the sizes of its parts exceed the size of the file")
        damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"it is damaged in {damaged}")
