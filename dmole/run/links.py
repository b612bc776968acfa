"""Sockets between rank 0 and the other ranks. The kernel closes one when its process ends.

That holds for every end, SIGKILL included, so the other side learns at once that a rank is lost.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import weakref
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch.distributed as dist

from dmole.distributed import broadcast

_TIMEOUT = 60.0  # seconds in which all ranks must connect
_KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 6}
"""A node that has lost power or network is found after 30 + 6 * 10 seconds."""
_open: weakref.WeakSet[Link] = weakref.WeakSet()


@dataclass(eq=False)
class Link:
    """A connection to another rank, for messages of one line each.

    Args:
        rank: The other rank.
        process: Process id of the other rank.
        host: Name of its host.
        socket: The connection.
        ended: Whether the other rank has announced its end.
    """

    rank: int
    process: int
    host: str
    socket: socket.socket
    ended: bool = False
    _unread: bytes = field(default=b"", repr=False)

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
            data = self.socket.recv(65536)
        except OSError:
            data = b""
        *lines, self._unread = (self._unread + data).split(b"\n")
        return [json.loads(line) for line in lines] if data else None

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
    address = (os.environ["MASTER_ADDR"], offer["port"])
    link = _link(socket.create_connection(address, _TIMEOUT), offer)
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
    """Accept connections until ``count`` ranks have introduced themselves with the key."""
    server.settimeout(_TIMEOUT)
    links: list[Link] = []
    while len(links) < count:
        connection, _ = server.accept()
        connection.settimeout(_TIMEOUT)
        introduced = Link(-1, 0, "", connection)
        try:
            messages = introduced.receive()
        except ValueError:
            messages = None
        if messages and messages[0].pop("key", None) == key:
            links.append(_link(connection, messages[0]))
        else:
            connection.close()  # not one of the ranks
    return sorted(links, key=lambda link: link.rank)


def _link(connection: socket.socket, other: dict[str, Any]) -> Link:
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE.items():
        if hasattr(socket, option):  # not on every operating system
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return Link(other["rank"], other["process"], other["host"], connection)


def _close_in_child() -> None:
    """Close the copies that a forked loader worker has: they would outlive a killed rank."""
    for link in _open:
        link.close()


os.register_at_fork(after_in_child=_close_in_child)
