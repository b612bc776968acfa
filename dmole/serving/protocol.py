"""HTTP connections with time limits on the head of a request and on unread parts of an answer.

uvicorn has neither.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from dmole.serving.limits import Limits

log = logging.getLogger("dmole")


class TimedProtocol(H11Protocol):
    """A connection whose head must arrive, and whose answer must be read, in time."""

    limits = Limits()
    """Has the seconds, see :func:`timed_protocol`."""

    _head_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the head of the first request."""
        super().connection_made(transport)
        # so that `pause_writing` tells of every byte that waits, and `resume_writing` of none
        transport.set_write_buffer_limits(high=0)
        self._start_timer()

    def data_received(self, data: bytes) -> None:
        """Wait for the rest of the head, or take what follows it."""
        if self._head_timer is None and self.conn.their_state is h11.IDLE:
            self._start_timer()
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:  # the head has arrived
            self._stop_timer()

    def pause_writing(self) -> None:
        """Wait until the client reads."""
        super().pause_writing()
        self._write_timer = self.loop.call_later(self.limits.write_seconds, self._give_up)

    def resume_writing(self) -> None:
        """Note that the client has read everything."""
        self._stop_write_timer()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._stop_timer()
        self._stop_write_timer()
        super().connection_lost(exc)

    def _give_up(self) -> None:
        log.warning("a client stopped reading its answer; its connection was closed")
        self.transport.abort()  # `close` would wait until the client reads

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _start_timer(self) -> None:
        self._head_timer = self.loop.call_later(self.limits.read_seconds, self.transport.abort)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def timed_protocol(limits: Limits) -> type[H11Protocol]:
    """Return the protocol of uvicorn that ends a connection whose client is too slow.

    Without it, a client that opens connections and sends nothing, or one byte a minute, or reads
    no answer, keeps them until the limit on connections is reached and nobody else is served.

    Args:
        limits: ``read_seconds`` is for the head of the first request from the connection's start,
            and for that of a later one from its first byte. ``write_seconds`` is for each part of
            an answer, until the last byte has left this process.
    """
    chosen = limits

    class Limited(TimedProtocol):
        """A connection with these limits."""

        limits = chosen

    return Limited


def server_options(protocol: type[H11Protocol], connections: int, drain: float) -> dict[str, Any]:
    """Return the options of uvicorn that the server does not leave at their default.

    Args:
        protocol: Of the connections.
        connections: Most open connections.
        drain: Seconds for running requests after SIGTERM.
    """
    return {
        "http": protocol,
        "ws": "none",
        "limit_concurrency": connections,
        "timeout_graceful_shutdown": drain,
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,
    }
