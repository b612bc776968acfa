"""HTTP connections with a time limit on the head of a request, which uvicorn lacks."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


def timed_protocol(seconds: float) -> type[H11Protocol]:
    """Return the protocol of uvicorn that closes a connection whose request does not arrive.

    Without it, a client that opens connections and sends nothing, or one byte a minute, keeps them
    until the limit on connections is reached and nobody else is served.

    Args:
        seconds: For the first request from the connection's start; and for a later one from its
            first byte.
    """

    class TimedProtocol(H11Protocol):
        """A connection whose head must arrive in time."""

        _head_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._start_timer()

        def data_received(self, data: bytes) -> None:
            if self._head_timer is None and self.conn.their_state is h11.IDLE:
                self._start_timer()
            super().data_received(data)
            if self.conn.their_state is not h11.IDLE:  # the head has arrived
                self._stop_timer()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            super().connection_lost(exc)

        def _start_timer(self) -> None:
            self._head_timer = self.loop.call_later(seconds, self.transport.abort)

        def _stop_timer(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

    return TimedProtocol


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
