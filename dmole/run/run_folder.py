"""Run folders: create a new one, find the last one, lock one against other processes."""

from __future__ import annotations

import logging
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from dmole.messages import one_line
from dmole.storage.files import UNSUPPORTED, errors_naming, read_text

log = logging.getLogger("dmole")

LAST = Path("checkpoints") / "last.ckpt"
"""Path of the last phase's checkpoint in a run folder."""


def find_run(root: Path, name: str, version: int | None) -> Path | None:
    """Return the newest run folder of a name that has a checkpoint, None if there is none.

    Args:
        root: Folder that holds the runs.
        name: Name of the run.
        version: Consider this version only; None for all.
    """
    versions = _versions(root / name) if version is None else [version]
    folders = (root / name / f"version_{number}" for number in sorted(versions, reverse=True))
    return next((folder for folder in folders if (folder / LAST).is_file()), None)


def claim_run(root: Path, name: str, version: int | None) -> Path:
    """Make a new run folder; processes that call it at the same time get different folders.

    Args:
        root: Folder that holds the runs.
        name: Name of the run.
        version: Number of the folder; None takes the next free one.

    Raises:
        ValueError: If the folder of that version exists.
    """
    parent = root / name
    parent.mkdir(parents=True, exist_ok=True)
    number = next_number(parent) if version is None else version
    while True:
        folder = parent / f"version_{number}"
        try:
            folder.mkdir()
        except FileExistsError as error:
            if version is not None:
                raise ValueError(
                    f"the run folder {folder} exists; choose another trainer.version, or "
                    "resume it by --ckpt_path"
                ) from error
            number += 1
        else:
            return folder


def next_version(run: Path) -> Path:
    """Return the next free version beside a run folder, which is not made.

    Raises:
        ValueError: If the folder is not called ``version_N``.
    """
    folder = run.resolve()
    if not re.fullmatch(r"version_\d+", folder.name):
        raise ValueError(f"{run} is not called version_N: --output names the folder of the new run")
    return folder.with_name(f"version_{next_number(folder.parent)}")


def next_number(parent: Path) -> int:
    """Return the number after that of the newest run folder of a name; 0 if there is none.

    Args:
        parent: Folder of the runs of that name. It need not exist.
    """
    return max(_versions(parent), default=-1) + 1


def _versions(parent: Path) -> list[int]:
    if not parent.is_dir():
        return []
    matches = (re.fullmatch(r"version_(\d+)", entry.name) for entry in parent.iterdir())
    return [int(match[1]) for match in matches if match]


class RunLock:
    """Keeps a second run from writing to the same folder.

    The operating system releases the lock when the process ends for any reason; forked loader
    workers do not keep it. A file system without locks causes a warning instead.

    Args:
        folder: The run folder.
        patience: Seconds to wait for a process that is about to end.
    """

    def __init__(self, folder: Path, patience: float = 10.0) -> None:
        self._folder = folder
        self._path = folder / "checkpoints" / "run.lock"
        # with a hook, filelock never falls back to marker files, which would outlive a killed run
        self._lock = FileLock(self._path, timeout=patience, on_acquired=_write_holder)

    def acquire(self) -> None:
        """Acquire the lock.

        Raises:
            ValueError: If another process holds it; names that process.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with errors_naming(self._path):
                self._lock.acquire(poll_interval=0.2)
        except Timeout as error:
            holder = one_line(read_text(self._path)) or "another process"
            raise ValueError(f"{self._folder} is being written by {holder}") from error
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            log.warning(
                "%s: this file system has no locks (%s); make sure that no second run writes here",
                self._folder,
                error.strerror,
            )

    def keep(self) -> None:
        """Acquire the lock again if its file was deleted.

        Raises:
            ValueError: If another process holds the lock by now; names that process.
        """
        if not self._path.exists():
            self._lock.release()
            self.acquire()

    def release(self) -> None:
        """Release the lock."""
        self._lock.release()  # the file stays: another process may be waiting for it


def _write_holder(descriptor: int) -> None:
    """Write process and host into the file of a lock."""
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)


@contextmanager
def finished_folder(output: Path, *, writes: bool) -> Iterator[Path]:
    """Yield a hidden folder that becomes ``output`` at the end, or is removed on an error.

    What a killed process has left there is removed first.

    Args:
        output: The folder to make.
        writes: Whether this process makes it; others only receive the path.

    Raises:
        ValueError: If ``output`` exists, another process is making it, or the hidden folder is a
            link.
    """
    folder = output.with_name(f".{output.name}.unfinished")
    if not writes:
        yield folder
        return
    _check_absent(output)
    for path in (folder, folder / "checkpoints"):  # a link would empty the folder it leads to
        if path.is_symlink():
            raise ValueError(f"{path} is a link, not a folder of an evaluation: remove it")
    lock = RunLock(folder, patience=1.0)
    lock.acquire()
    try:
        for entry in folder.iterdir():
            if entry.name != "checkpoints":  # which has the lock
                is_folder = entry.is_dir() and not entry.is_symlink()
                shutil.rmtree(entry) if is_folder else entry.unlink()
        yield folder
        shutil.rmtree(folder / "checkpoints")
        _check_absent(output)
        folder.rename(output)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        lock.release()


def _check_absent(output: Path) -> None:
    if os.path.lexists(output):
        raise ValueError(f"{output} exists; name another output")
