"""A request on its way through the server, between the event loop and the thread of the model."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from dmole.inference.requests import Answer, Request
from dmole.serving.stops import StopFilter


@dataclass(frozen=True)
class Ended:
    """The end of a job.

    Args:
        answer: The model's answer.
        finish_reason: ``stop`` or ``length``.
    """

    answer: Answer
    finish_reason: str


Event = str | Ended | Exception
"""A piece of text, the end, or why there is no answer."""


class Job:
    """One request; the model's thread puts events in, the event loop takes them out.

    Made on the event loop.

    Args:
        request: What is asked.
        stops: Sequences that end the answer; they are not part of it.
    """

    def __init__(self, request: Request, stops: Sequence[str] = ()) -> None:
        self.request = request
        self.cancelled = False
        self.started = False
        self._filter = StopFilter(stops)
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    async def next_event(self) -> Event:
        """Return the next event, after waiting for it."""
        return await self._events.get()

    async def end(self) -> tuple[str, Ended]:
        """Return the whole text and the end, after waiting for it.

        Raises:
            Exception: What kept the model from answering.
        """
        pieces: list[str] = []
        while True:
            event = await self.next_event()
            if isinstance(event, Exception):
                raise event
            if isinstance(event, Ended):
                return "".join(pieces), event
            pieces.append(event)

    def cancel(self) -> None:
        """Give the request up: it leaves the queue, or its batch at the next token."""
        self.cancelled = True

    # -- called by the model's thread ------------------------------------------------------

    def receive(self, text: str) -> bool:
        """Take the next piece of the answer; return whether the model should continue."""
        self.started = True
        shown = self._filter.feed(text)
        if shown:
            self._put(shown)
        return not (self.cancelled or self._filter.stopped)

    def finish(self, answer: Answer) -> None:
        """Take the end of the answer."""
        stopped = self._filter.stopped
        rest = self._filter.end()
        if rest:
            self._put(rest)
        self._put(Ended(answer, "stop" if stopped else answer.finish_reason))

    def fail(self, error: Exception) -> None:
        """Take the reason why there is no answer."""
        self._put(error)

    def _put(self, event: Event) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
