"""Looks for new finished runs of the same base model and adds their experts to a running server."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

from dmole.messages import one_line
from dmole.run.learned import read_names
from dmole.serving.admin import add_expert
from dmole.serving.service import Service
from dmole.storage.digests import FILE as DIGESTS
from dmole.storage.digests import read_digests
from dmole.storage.reading import read_json

log = logging.getLogger("dmole")


class Watcher:
    """Adds the experts of runs that finish below a folder.

    Args:
        service: The server.
        folder: Its subfolders are looked at, such as the parent of ``version_0``, or the folder
            itself if it is a run.
        seconds: Seconds between two looks.
        served: The run that the server has loaded, which is left out.
    """

    def __init__(self, service: Service, folder: Path, seconds: float, served: Path) -> None:
        self._service = service
        self._folder = folder
        self._seconds = seconds
        self._seen: dict[Path, int] = {}
        self._served = served.resolve()

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            try:
                await self.look()
            except OSError as error:  # the folder may be away for a while
                log.warning("cannot watch %s: %s", self._folder, one_line(error))
            await asyncio.sleep(self._seconds)

    async def look(self) -> None:
        """Add the experts of runs that have finished since the last look."""
        for run in await asyncio.to_thread(self._finished_since):
            try:
                names = await asyncio.to_thread(_names_of, run)
            except ValueError as error:
                log.warning("%s: %s", run, one_line(error))
                continue
            for name in names:
                if name not in self._service.experts:
                    await self._add(run, name)

    async def _add(self, run: Path, name: str) -> None:
        try:
            await add_expert(self._service, run, name)
        except ValueError as error:
            log.warning("expert %s of %s was not added: %s", name, run, one_line(error))

    def _finished_since(self) -> list[Path]:
        """Return the finished runs that are new or have changed since they were returned."""
        runs = []
        for folder in [self._folder, *sorted(self._folder.iterdir())]:
            file = folder / DIGESTS
            if not file.is_file() or folder.resolve() == self._served:
                continue
            changed = file.stat().st_mtime_ns
            if self._seen.get(folder) != changed and is_finished(folder):
                self._seen[folder] = changed
                runs.append(folder)
        return runs


def _names_of(run: Path) -> list[str]:
    return read_names(run, read_digests(run))


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
    planned = metrics.get("per_task")
    stages = [row.partition(",")[0] for row in rows]
    return (
        isinstance(planned, dict)
        and set(planned) <= learned
        and stages[-1:] == [str(len(digests.stages))]
    )
