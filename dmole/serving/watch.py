"""Looks for new finished runs of the same base model and adds their experts to a running server."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

from dmole.messages import one_line
from dmole.run.learned import read_names
from dmole.run.run_folder import is_edited
from dmole.serving.admin import add_expert
from dmole.serving.service import Service
from dmole.storage.digests import FILE as DIGESTS
from dmole.storage.digests import read_digests
from dmole.storage.disabled import read_disabled
from dmole.storage.reading import read_json

log = logging.getLogger("dmole")


class Watcher:
    """Adds the experts of runs that finish below a folder.

    Args:
        service: The server.
        folder: Its subfolders are looked at, such as the parent of ``version_0``, or the folder
            itself if it is a run.
        seconds: Seconds between two looks.
        served: The run that the server has loaded, which is left out, as are the experts that it
            has disabled.
    """

    def __init__(self, service: Service, folder: Path, seconds: float, served: Path) -> None:
        self._service = service
        self._folder = folder
        self._seconds = seconds
        self._seen: dict[Path, int] = {}
        self._served = served.resolve()
        self._disabled = frozenset(read_disabled(served))
        self._failed: dict[Path, str] = {}

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            try:
                await self.look()
            except Exception as error:  # the folder may be away for a while
                log.warning("cannot watch %s: %s", self._folder, one_line(error))
            await asyncio.sleep(self._seconds)

    async def look(self) -> None:
        """Add the experts of runs that have finished since the last look."""
        for folder in await asyncio.to_thread(self._folders):
            try:
                names = await asyncio.to_thread(self._names_since, folder)
            except Exception as error:  # one odd folder must not hide the runs beside it
                self._warn_once(folder, one_line(error))
                continue
            for name in names:
                if name not in {*self._service.experts, *self._service.removed, *self._disabled}:
                    await self._add(folder, name)

    async def _add(self, run: Path, name: str) -> None:
        try:
            await add_expert(self._service, run, name)
        except Exception as error:  # such as a device without memory
            log.warning("expert %s of %s was not added: %s", name, run, one_line(error))

    def _folders(self) -> list[Path]:
        folders = [self._folder, *sorted(self._folder.iterdir())]
        return [folder for folder in folders if folder.resolve() != self._served]

    def _names_since(self, run: Path) -> list[str]:
        """Return the experts of a run that has finished or changed since the last look.

        A run that ``dmole experts`` made is left out: its experts are those of other runs, some
        under other names.
        """
        file = run / DIGESTS
        if not file.is_file():
            return []
        changed = file.stat().st_mtime_ns
        if self._seen.get(run) == changed or not is_finished(run):
            return []
        self._seen[run] = changed
        if is_edited(run):
            log.info("%s was made by dmole experts: its experts are not added", run)
            return []
        return read_names(run, read_digests(run))

    def _warn_once(self, folder: Path, reason: str) -> None:
        """Log why a folder is passed over, unless the last look found the same."""
        if self._failed.get(folder) != reason:
            log.warning("%s: %s", folder, reason)
        self._failed[folder] = reason


def is_finished(run: Path) -> bool:
    """Return whether a run has learned and evaluated all of its tasks."""
    try:
        digests = read_digests(run)
        metrics: Any = read_json(run / "metrics.json", "metrics")
        rows = (run / "evaluation_matrix.csv").read_text(encoding="utf-8").splitlines()
    except (ValueError, OSError):
        return False  # it is being written
    if digests is None or not isinstance(metrics, dict):
        return False
    learned = {task for stage in digests.stages for task in stage.get("tasks", ())}
    planned, prints = metrics.get("per_task"), metrics.get("fingerprints")
    data = prints.get("data") if isinstance(prints, dict) else None
    splits = data.items() if isinstance(data, dict) else ()
    trained = {task for task, names in splits if isinstance(names, dict) and "train" in names}
    stages = [row.partition(",")[0] for row in rows]
    return (
        isinstance(planned, dict)
        and {*planned, *trained} <= learned  # an update without test samples has no figures
        and stages[-1:] == [str(len(digests.stages))]
    )
