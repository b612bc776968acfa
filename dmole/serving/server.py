"""Runs the application: sockets, signals, the end."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn

from dmole.messages import one_line
from dmole.serving.api import make_app
from dmole.serving.protocol import server_options, timed_protocol
from dmole.serving.service import Service
from dmole.serving.watch import Watcher

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Server(uvicorn.Server):
    """A server of uvicorn that ends with status 0 after a signal, and at once after a second one.

    uvicorn raises the signal again after the last answer, so a supervisor would see a failure.
    """

    on_ready: Callable[[], None] | None = None
    """Called once the server accepts requests and handles signals."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen."""
        await super().startup(sockets)
        if self.on_ready is not None:
            self.on_ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals for the body of a ``with`` statement; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop accepting requests at the first signal, end the process at the second."""
        if self.should_exit:
            os.write(2, b"dmole: ended at the second signal\n")
            os._exit(128 + sig)  # the model's thread may be in a long forward pass
        else:
            self.should_exit = True  # before the message, which another signal may answer
            os.write(2, b"dmole: no new requests, running ones are answered\n")


def make_server(service: Service) -> Server:
    """Return the server of a service; its engine must have been started."""
    limits = service.limits
    protocol = timed_protocol(limits)
    options = server_options(protocol, limits.max_connections, limits.drain_seconds)
    return Server(uvicorn.Config(make_app(service), **options))


async def serve(server: Server, listener: socket.socket, watcher: Watcher | None = None) -> None:
    """Serve until a signal, then answer what runs.

    Args:
        server: The server.
        listener: A bound socket.
        watcher: Adds new experts meanwhile.
    """
    watching = asyncio.create_task(watcher.run()) if watcher is not None else None
    try:
        await server.serve([listener])
    finally:
        if watching is not None:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens at an address.

    Raises:
        ValueError: If there is no such port, or the address cannot be bound; names it.
    """
    if not 0 <= port <= 65535:  # getaddrinfo takes the remainder
        raise ValueError(f"--port {port} is no port: there are 0 to 65535")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        return socket.create_server(address[:2], family=family, backlog=2048)
    except (OSError, UnicodeError) as error:
        raise ValueError(f"cannot listen at {host}:{port}: {one_line(error)}") from error


def is_loopback(host: str) -> bool:
    """Return whether an address can be reached from this machine alone.

    Raises:
        ValueError: If the host has no address.
    """
    try:
        found = socket.getaddrinfo(host, None)
    except (OSError, UnicodeError) as error:
        raise ValueError(f"--host {host}: {one_line(error)}") from error
    return all(ipaddress.ip_address(str(entry[4][0])).is_loopback for entry in found)


def address_of(listener: socket.socket) -> str:
    """Return the URL of a bound socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
