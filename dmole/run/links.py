"""Sockets between rank 0 and the other ranks. The kernel closes one when its process ends.

That holds for every end, SIGKILL included, so the other side learns at once that a rank is lost.
"""

from __future__ import annotations

import json
import os
import secrets
import selectors
import socket
import time
import weakref
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch.distributed as dist

from dmole.distributed import broadcast

_TIMEOUT = 60.0  # seconds in which all ranks must connect
_LONGEST = 65536  # bytes of an introduction
_KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 6}
"""A node that has lost power or network is found after 30 + 6 * 10 seconds."""
_open: weakref.WeakSet[Link] = weakref.WeakSet()


@dataclass(eq=False)
class Link:
    """A connection to another rank, for messages of one line each.

    Args:
        socket: The connection.
        rank: The other rank; -1 until it has introduced itself.
        process: Process id of the other rank.
        host: Name of its host.
        ended: Whether the other rank has announced its end.
    """

    socket: socket.socket
    rank: int = -1
    process: int = 0
    host: str = ""
    ended: bool = False
    _unread: bytes = field(default=b"", repr=False)
    _early: list[dict[str, Any]] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        _open.add(self)

    @property
    def name(self) -> str:
        """Rank, process id and host, for messages."""
        return f"rank {self.rank} (process {self.process} on {self.host})"

    def send(self, **content: Any) -> None:
        """Send a message; without effect if the other rank is gone."""
        with suppress(OSError):  # the watching thread reads the end of the connection
            self.socket.sendall(json.dumps(content).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]] | None:
        """Wait for messages and return those that are complete; None after the last one."""
        try:
            data = self.socket.recv(_LONGEST)
        except OSError:  # a reset connection still gives what arrived before
            data = b""
        *lines, self._unread = (self._unread + data).split(b"\n")
        return [json.loads(line) for line in lines] if data else None

    def take_early(self) -> list[dict[str, Any]]:
        """Return the messages that arrived together with the introduction, once."""
        early, self._early = self._early, []
        return early

    def introduce(self, key: str) -> bool:
        """Read the introduction of the other rank; return whether it is complete.

        It may arrive in several parts, and together with the messages that follow it.

        Args:
            key: Known to the ranks alone.

        Raises:
            ValueError: If the other side is not one of the ranks.
        """
        messages = self.receive()
        if messages is None or len(self._unread) >= _LONGEST:
            raise ValueError("no introduction")
        if not messages:
            return False
        first, *self._early = messages
        if not isinstance(first, dict) or first.get("key") != key:
            raise ValueError("not one of the ranks")
        self.rank, self.process, self.host = first["rank"], first["process"], first["host"]
        return True

    def close(self) -> None:
        """Close this process's copy of the connection."""
        self.socket.close()


def connect_ranks() -> list[Link]:
    """Connect rank 0 with all others; all ranks must call it.

    Returns:
        On rank 0 the links to all other ranks, on each other rank the link to rank 0.

    Raises:
        OSError: If a rank cannot be reached.
    """
    rank, server, offer = dist.get_rank(), None, None
    if rank == 0:
        server = _listen()
        port = server.getsockname()[1]
        offer = {"port": port, "key": secrets.token_hex(16), **_introduction(rank)}
    offer = broadcast(offer)
    assert offer is not None  # rank 0 has sent it
    if server is not None:
        with server:
            return _accept_all(server, offer["key"], dist.get_world_size() - 1)
    connection = socket.create_connection((os.environ["MASTER_ADDR"], offer["port"]), _TIMEOUT)
    link = Link(connection, offer["rank"], offer["process"], offer["host"])
    _watch_silence(connection)
    link.send(key=offer["key"], **_introduction(rank))
    return [link]


def _introduction(rank: int) -> dict[str, Any]:
    return {"rank": rank, "process": os.getpid(), "host": socket.gethostname()}


def _listen() -> socket.socket:
    """Return a server on a free port of all interfaces, of IPv6 too where the host has it."""
    if socket.has_dualstack_ipv6():
        with suppress(OSError):  # IPv6 may be compiled in but switched off
            return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def _accept_all(server: socket.socket, key: str, count: int) -> list[Link]:
    """Accept connections until ``count`` ranks have introduced themselves with the key.

    Other programs may connect too, such as one that scans ports. They delay no rank.

    Raises:
        OSError: If a rank has not introduced itself in time.
    """
    links: list[Link] = []
    deadline = time.monotonic() + _TIMEOUT
    with selectors.DefaultSelector() as selector:
        selector.register(server, selectors.EVENT_READ)
        while len(links) < count:
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError(f"{count - len(links)} ranks have not connected to rank 0")
            for event, _ in ready:
                if event.data is None:
                    arrived = Link(server.accept()[0])
                    selector.register(arrived.socket, selectors.EVENT_READ, arrived)
                elif _is_settled(event.data, key):
                    selector.unregister(event.fileobj)
                    links += [event.data] if event.data.rank >= 0 else []
        for event in selector.get_map().values():
            if event.data is not None:
                event.data.close()
    return sorted(links, key=lambda link: link.rank)


def _is_settled(link: Link, key: str) -> bool:
    """Return whether the other side has introduced itself, or has been refused and closed."""
    try:
        if not link.introduce(key):
            return False
        _watch_silence(link.socket)
    except ValueError:
        link.close()
    return True


def _watch_silence(connection: socket.socket) -> None:
    """Let the kernel find that the host of the other side is gone."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE.items():
        if hasattr(socket, option):  # not on every operating system
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _close_in_child() -> None:
    """Close the copies that a forked loader worker has: they would outlive a killed rank."""
    for link in _open:
        link.close()


os.register_at_fork(after_in_child=_close_in_child)
