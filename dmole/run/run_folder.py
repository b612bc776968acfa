"""Run folders: claiming a new one, finding the last one, keeping two processes out of one."""

from __future__ import annotations

import fcntl
import os
import re
import socket
import time
from pathlib import Path
from typing import TextIO

LAST = Path("checkpoints") / "last.ckpt"
"""Where a run folder keeps the state of its last finished phase."""


def find_run(root: Path, name: str, version: int | None) -> Path | None:
    """Return the newest run folder of a name that has a checkpoint, None where there is none.

    Args:
        root: Where the runs are.
        name: Name of the run.
        version: Look at this version only.
    """
    versions = _versions(root / name) if version is None else [version]
    folders = (root / name / f"version_{number}" for number in sorted(versions, reverse=True))
    return next((folder for folder in folders if (folder / LAST).is_file()), None)


def claim_run(root: Path, name: str, version: int | None) -> Path:
    """Make a new run folder; of two processes that ask at once, each gets its own.

    Args:
        root: Where the runs are.
        name: Name of the run.
        version: Number of the folder; None takes the next free one.

    Raises:
        ValueError: If the folder of that version exists.
    """
    parent = root / name
    parent.mkdir(parents=True, exist_ok=True)
    number = max(_versions(parent), default=-1) + 1 if version is None else version
    while True:
        folder = parent / f"version_{number}"
        try:
            folder.mkdir()
        except FileExistsError as error:
            if version is not None:
                raise ValueError(
                    f"the run folder {folder} exists; choose another trainer.version, or go on "
                    "with it by --ckpt_path"
                ) from error
            number += 1
        else:
            return folder


def _versions(parent: Path) -> list[int]:
    if not parent.is_dir():
        return []
    matches = (re.fullmatch(r"version_(\d+)", entry.name) for entry in parent.iterdir())
    return [int(match[1]) for match in matches if match]


class RunLock:
    """Keeps a second run from writing into the same folder.

    A lock of the operating system, gone with the process however it ends.

    Args:
        folder: The run folder.
        patience: Seconds to wait for a process that is ending.
    """

    def __init__(self, folder: Path, patience: float = 10.0) -> None:
        self._path = folder / "checkpoints" / "run.lock"
        self._patience = patience
        self._file: TextIO | None = None

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            ValueError: If another process has it; names that one.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        file = self._path.open("a+", encoding="utf-8")
        deadline = time.monotonic() + self._patience
        while True:
            try:
                # a POSIX lock: loader workers, which are forked, do not inherit it
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    file.seek(0)
                    holder = file.read().strip() or "another process"
                    file.close()
                    folder = self._path.parents[1]
                    raise ValueError(f"{folder} is being written by {holder}") from error
                time.sleep(0.2)
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        self._file = file

    def release(self) -> None:
        """Give the lock back."""
        if self._file is not None:
            self._file.close()  # the file stays: another process may be waiting for it
            self._file = None
