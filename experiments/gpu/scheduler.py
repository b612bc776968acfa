"""Runs sections in processes of their own, so that a failure or a lost GPU ends one section only.

The next processes import while others measure. A section that measures time runs alone.
"""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection, wait
from typing import Any

from dmole.messages import one_line
from experiments.gpu.common import NotRunError, Row, Setting
from experiments.gpu.report import Report


@dataclass(frozen=True)
class Section:
    """A part of the report.

    Args:
        name: Its name.
        function: Module in this package and function in it, ``large.proxy``.
        alone: Whether nothing else may run beside it.
    """

    name: str
    function: str
    alone: bool = False

    def rows(self, setting: Setting) -> Iterator[Row]:
        """Return the rows of the section, which are measured as they are taken."""
        module, _, name = self.function.partition(".")
        function: Callable[[Setting], Iterator[Row]] = getattr(
            import_module(f"experiments.gpu.{module}"), name
        )
        return function(setting)


_BEGUN = "begun"
"""Sent by a process once it has imported its section and it is its turn."""


class _Child:
    """A process that imports a section, waits for its turn, and sends rows."""

    def __init__(self, section: Section, setting: Setting) -> None:
        context = multiprocessing.get_context("spawn")
        self.section = section
        self.rows, far = context.Pipe()
        self._process = context.Process(target=_work, args=(section, setting, far), daemon=True)
        self._process.start()
        far.close()
        self.started = 0.0

    def begin(self) -> None:
        self.started = time.monotonic()
        self.rows.send(None)

    def end(self) -> int | None:
        """End the process, if it still runs, and return its exit code."""
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self.rows.close()
        return self._process.exitcode


def _work(section: Section, setting: Setting, pipe: Connection) -> None:
    """Send the rows of a section, then None."""
    import_module(f"experiments.gpu.{section.function.partition('.')[0]}")
    pipe.recv()
    pipe.send(_BEGUN)
    try:
        for row in section.rows(setting):
            pipe.send(row)
    except NotRunError as reason:
        pipe.send(("not run", str(reason), ""))
    except Exception as error:  # any failure is a row of the report
        traceback.print_exc()
        pipe.send(("error", f"{type(error).__name__}: {one_line(error)}", ""))
    pipe.send(None)


def run_sections(
    sections: Sequence[Section],
    setting: Setting,
    report: Report,
    *,
    jobs: int,
    limit: float,
    budget: float,
) -> None:
    """Run sections in order and add their rows to the report.

    Args:
        sections: The sections.
        setting: Handed to each.
        report: Takes the rows.
        jobs: Most sections at a time, of those that do not run alone.
        limit: Seconds of a section.
        budget: Seconds of all sections; what has not begun by then is not run.
    """
    end = time.monotonic() + budget
    waiting, ready, running = deque(sections), deque[_Child](), list[_Child]()
    while waiting or ready or running:
        while waiting and len(ready) + len(running) <= jobs:
            ready.append(_Child(waiting.popleft(), setting))
        while ready and _may_begin(ready[0].section, running, jobs):
            running.append(ready.popleft())
            running[-1].begin()
        for pipe in wait([child.rows for child in running], timeout=0.5):
            child = next(child for child in running if child.rows is pipe)
            if not _take(child, report):
                running.remove(child)
        now = time.monotonic()
        for child in [c for c in running if now > min(end, c.started + limit)]:
            running.remove(child)
            _stop(child)
            report.add(child.section.name, "stopped", "out of time", f"{limit:g} s")
        if now > end:
            _leave(report, [child.section for child in ready] + list(waiting))
            for child in ready:
                _stop(child)
            return


def _may_begin(section: Section, running: Sequence[_Child], jobs: int) -> bool:
    if not running:
        return True
    return len(running) < jobs and not section.alone and not running[0].section.alone


def _take(child: _Child, report: Report) -> bool:
    """Add the next row of a child; return whether more may come."""
    name, row = child.section.name, None
    try:
        row = child.rows.recv()
    except EOFError:
        report.add(name, "error", f"the process ended with exit code {child.end()}")
        return False
    if row == _BEGUN:
        child.started = time.monotonic()  # not counting the imports
        return True
    if row is not None:
        report.add(name, *row)
        return True
    report.add(name, "seconds", round(time.monotonic() - child.started, 1))
    child.end()
    return False


def _stop(child: _Child) -> None:
    process: Any = child._process
    process.kill()
    child.end()


def _leave(report: Report, sections: Sequence[Section]) -> None:
    for section in sections:
        report.add(section.name, "not run", "out of time")
