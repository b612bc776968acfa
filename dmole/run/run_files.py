"""The files of a run: written, remembered by their digests, and written again when they are lost.

A run must end with all its files, also if someone deletes or changes some of them meanwhile.
Callbacks name the files that must be there; see :meth:`RunFiles.broken`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from dmole.storage.digests import Digests, file_digest, read_digests, write_digests
from dmole.storage.reading import open_file

if TYPE_CHECKING:
    from dmole.module import ContinualModule
    from dmole.run.state import SequenceState
    from dmole.streams.stream import Stage


@dataclass(frozen=True)
class RunFile:
    """A file of a run, or a folder of files that are written together.

    Args:
        name: Path below the run folder, with ``/``.
        write: Writes it, given the run folder. None if its content is no longer known, so that
            it has to be computed by another evaluation.
        verified: Whether readers of the run verify its digest. Files that differ between equal
            runs, such as times, are left out.
    """

    name: str
    write: Callable[[Path], object] | None = None
    verified: bool = True


@runtime_checkable
class HoldsRunFiles(Protocol):
    """A callback that writes files of the run."""

    def run_files(self, state: SequenceState, module: ContinualModule) -> Iterable[RunFile]:
        """Return the files that must be there now."""


class RunFiles:
    """Writes the files of a run and remembers what they hold."""

    def __init__(self) -> None:
        self._digests: dict[str, dict[str, str]] = {}  # by name of the `RunFile`, then by path
        self._unverified: set[str] = set()
        self._stamps: dict[str, tuple[int, int, int]] = {}

    def put(self, run: Path, stages: Sequence[Stage], files: Iterable[RunFile]) -> None:
        """Write files, then the digests of all files.

        Args:
            run: The run folder.
            stages: Stages whose experts are trained.
            files: Files whose content is known.

        Raises:
            ValueError: If the content of a file is not known.
        """
        for file in files:
            if file.write is None:
                raise ValueError(f"the content of {file.name} is not known")
            file.write(run)
            paths = _paths(run, file.name)
            self._digests[file.name] = {path: file_digest(run / path) for path in paths}
            self._stamps |= {path: _stamp(run / path) for path in paths}
            (self._unverified.discard if file.verified else self._unverified.add)(file.name)
        self.write_digests(run, stages)

    def write_digests(self, run: Path, stages: Sequence[Stage]) -> None:
        """Write ``digests.json``, unless it is there with the same content."""
        verified = (g for name, g in self._digests.items() if name not in self._unverified)
        files = {path: digest for group in verified for path, digest in group.items()}
        digests = Digests(files, tuple(plain_stage(stage) for stage in stages))
        try:
            if read_digests(run) == digests:
                return
        except ValueError:
            pass  # it is damaged
        write_digests(run, digests)

    def has_written(self, name: str) -> bool:
        """Return whether this run has written a file, in this process or an earlier one."""
        return name in self._digests

    def broken(self, run: Path, files: Iterable[RunFile], *, thorough: bool) -> list[RunFile]:
        """Return the files that are missing, or not as this run has written them.

        Args:
            run: The run folder.
            files: Files that must be there.
            thorough: Whether to compare the content. Otherwise size, time and inode are compared.
        """
        return [file for file in files if not self._is_whole(run, file.name, thorough)]

    def _is_whole(self, run: Path, name: str, thorough: bool) -> bool:
        return name in self._digests and all(
            self._is_same(run / path, path, digest, thorough)
            for path, digest in self._digests[name].items()
        )

    def _is_same(self, file: Path, path: str, digest: str, thorough: bool) -> bool:
        try:
            if not thorough and self._stamps.get(path) == _stamp(file):
                return True
            same = file_digest(file) == digest
            if same:
                self._stamps[path] = _stamp(file)
        except (OSError, ValueError):
            return False
        return same

    def adopt(self, run: Path, files: Iterable[RunFile]) -> None:
        """Take files of a run of an earlier version as they are, if they are there."""
        for file in files:
            path = run / file.name
            if file.name not in self._digests and path.is_file() and _ends_in_line(path):
                self._digests[file.name] = {file.name: file_digest(path)}

    def forget(self, start: str) -> None:
        """Forget the files whose names begin in a way; they are no longer files of the run."""
        for name in [name for name in self._digests if name.startswith(start)]:
            del self._digests[name]
            self._unverified.discard(name)

    def state_dict(self) -> dict[str, Any]:
        """Return the digests, for a checkpoint."""
        return {"digests": self._digests, "unverified": sorted(self._unverified)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of :meth:`state_dict`."""
        self._digests = {name: dict(paths) for name, paths in state["digests"].items()}
        self._unverified = set(state["unverified"])
        self._stamps = {}


def _paths(run: Path, name: str) -> list[str]:
    """Return the paths below the run folder of a file, or of the files of a folder."""
    if not (run / name).is_dir():
        return [name]
    found = (path for path in (run / name).iterdir() if not path.name.startswith("."))
    return sorted(f"{name}/{path.name}" for path in found if path.is_file())


def _ends_in_line(file: Path) -> bool:
    """Return whether a text file ends with the end of a line, so it is not cut short."""
    with open_file(file) as content:
        end = content.seek(0, os.SEEK_END)
        content.seek(max(0, end - 1))
        return content.read() == b"\n"


def _stamp(file: Path) -> tuple[int, int, int]:
    """Return size, time and inode of a regular file."""
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{file} is not a regular file")
    return status.st_size, status.st_mtime_ns, status.st_ino


def plain_stage(stage: Stage) -> dict[str, Any]:
    """Return what a reader of the run needs to know of a stage."""
    plain = {"index": stage.index, "name": stage.name, "expert": stage.expert}
    return plain | {"common": stage.common, "tasks": list(stage.tasks)}
