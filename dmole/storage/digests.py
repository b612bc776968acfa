"""The digests of the files of a run folder, in ``digests.json``, and their verification."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dmole.storage.files import write_json
from dmole.storage.reading import open_file, read_json

FILE = "digests.json"
"""Name of the file in a run folder."""
FORMAT = 1

_DIGEST = re.compile(r"[0-9a-f]{64}")
_CHUNK = 1 << 20
_LARGEST = 1 << 34  # bytes of a file of a run; a hole of a terabyte would be read for hours

HINTS = {
    "router/router.json": (
        "thresholds follow from the held-out losses in the tensors of the router; "
        "dmole evaluate --threshold_scale scales them"
    ),
    "model.json": "change a setting of a run with a flag, such as --data.data_root DIR",
}
"""Advice in place of an edit by hand, by file."""


@dataclass(frozen=True)
class Digests:
    """The files that a run has written.

    Args:
        files: SHA-256 of each file, by its path below the run folder.
        stages: Stages whose experts are trained, in plain values, in order.
    """

    files: Mapping[str, str] = field(default_factory=dict)
    stages: tuple[Mapping[str, Any], ...] = ()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of the content of a regular file.

    Raises:
        ValueError: If it cannot be read; names the file.
    """
    with open_file(path, "file of the run", limit=_LARGEST) as file:
        digest = hashlib.sha256()
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def write_digests(run: Path, digests: Digests) -> None:
    """Write ``digests.json``. Runs with the same results write the same bytes."""
    content = {
        "format": FORMAT,
        "stages": [dict(stage) for stage in digests.stages],
        "files": dict(sorted(digests.files.items())),
    }
    write_json(run / FILE, content)


def read_digests(run: Path) -> Digests | None:
    """Return the digests of a run; None if the run is older than ``digests.json``.

    Raises:
        ValueError: If the file cannot be read or is of another form; names it.
    """
    path = run / FILE
    if not path.exists():
        return None
    content = read_json(path, "digests")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path}: expected the digests of a run in format {FORMAT}")
    files, stages = content.get("files"), content.get("stages")
    if not isinstance(files, dict) or not all(_is_entry(*entry) for entry in files.items()):
        raise ValueError(f"{path}: 'files' must map paths below the run folder to SHA-256 digests")
    if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
        raise ValueError(f"{path}: 'stages' must be a list of objects")
    return Digests(files, tuple(stages))


def _is_entry(name: str, digest: object) -> bool:
    parts = name.split("/")
    below = all(part not in ("", ".", "..") for part in parts) and "\\" not in name
    return below and isinstance(digest, str) and _DIGEST.fullmatch(digest) is not None


def verify_files(run: Path, digests: Digests, chosen: Callable[[str], bool]) -> None:
    """Raise unless files of a run are as the run has written them.

    Args:
        run: The run folder.
        digests: Its digests.
        chosen: Returns whether a file, named by its path below the run folder, is verified.

    Raises:
        ValueError: If a file is missing or its content differs; names the file.
    """
    for name, expected in digests.files.items():
        if chosen(name):
            verify_file(run, name, expected)


def verify_file(run: Path, name: str, expected: str) -> None:
    """Raise unless a file of a run has a digest; see :func:`verify_files`."""
    found = file_digest(run / name)
    if found != expected:
        advice = HINTS.get(name, "resuming the run with --ckpt_path writes it again")
        raise ValueError(
            f"{run / name} is not the file that this run has written "
            f"(SHA-256 {found[:12]}..., in {FILE} {expected[:12]}...): {advice}"
        )
