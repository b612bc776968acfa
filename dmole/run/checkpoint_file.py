"""Checkpoint files: written whole or not at all, verified and read without running anything."""

from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from dmole.messages import first_line
from dmole.storage.files import atomic_path

FORMAT = 3
"""Version of the layout. Version 2 is converted when it is read, others are refused."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes Lightning's checkpoints so that the old one stays until the new one is whole."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint."""
        save_checkpoint(checkpoint, Path(path))


def save_checkpoint(content: dict[str, Any], path: Path) -> None:
    """Write a checkpoint; the old one stays until the new one is whole.

    Raises:
        OSError: If it cannot be written, for want of space for instance; names the file.
    """
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # its writer closes the archive, which fails once more
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise


def read_checkpoint(file: Path) -> dict[str, Any]:
    """Return a checkpoint's content; nothing in it is executed.

    Raises:
        ValueError: If the file is missing, damaged, or no checkpoint of a sequence.
    """
    if not file.is_file():
        raise ValueError(f"there is no checkpoint {file}")
    try:
        _verify(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # the message of torch recommends to load it with its code
        match = re.search(r"(?:GLOBAL|class|function) ([\w.]+)", str(error))
        name = f" ({match[1]})" if match else ""
        raise ValueError(
            f"cannot read checkpoint {file}: it holds more than tensors and plain values{name}, "
            "and nothing of a checkpoint is ever run"
        ) from error
    except Exception as error:  # torch raises half a dozen kinds for damaged files
        raise ValueError(f"cannot read checkpoint {file}: {first_line(error)}") from error
    if isinstance(content, dict) and content.get("format") == 2:
        return {**_converted(content), "format": FORMAT}
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{file} is not a checkpoint of a sequence of this version")
    return content


def _converted(content: Any) -> Any:
    """Return content of version 2 with the names of version 3.

    There, experts were named after tasks: ``...experts.task_<name>...`` in the names of tensors,
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


def _verify(file: Path) -> None:
    """Refuse a damaged file: torch compares none of the checksums it writes.

    Raises:
        ValueError: If the file is no archive as torch writes it, or a part is not what it was.
    """
    if not zipfile.is_zipfile(file):
        raise ValueError("it is cut short, or no checkpoint")
    with zipfile.ZipFile(file) as archive:
        parts = archive.infolist()
        if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
            raise ValueError("it is compressed, which torch never does")
        if any(part.external_attr or part.is_dir() for part in parts):
            raise ValueError("it holds folders, whose content torch takes for read")
        if sum(part.file_size for part in parts) > file.stat().st_size:
            raise ValueError("its parts claim more than the file holds")
        damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"it is damaged in {damaged}")
