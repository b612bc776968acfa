"""Connections between rank 0 and the other ranks. The kernel closes one when its process ends.

That holds for every end, SIGKILL included, so the other side learns at once that a rank is lost.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from dmole.run.channel import Message, Peer

_DIRECT = 10.0  # seconds in which a rank must reach rank 0; a firewall may drop its packets
_TIMEOUT = 60.0  # seconds in which all ranks that reached rank 0 must have introduced themselves
_LONGEST = 65536  # bytes of an introduction
_KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 6}
"""A node that has lost power or network is found after 30 + 6 * 10 seconds."""
_open: weakref.WeakSet[Link] = weakref.WeakSet()


@dataclass(eq=False)
class Link(Peer):
    """A socket to another rank, for messages of one line each."""

    socket: socket.socket = field(default_factory=socket.socket, kw_only=True)
    _unread: bytes = field(default=b"", repr=False)
    _early: list[Message] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        _open.add(self)

    def send(self, **content: Any) -> None:
        """Send a message; without effect if the other rank is gone."""
        with suppress(OSError):  # the watching thread reads the end of the connection
            self.socket.sendall(json.dumps(content).encode() + b"\n")

    def receive(self) -> list[Message] | None:
        """Wait for messages and return those that are complete; None after the last one."""
        try:
            data = self.socket.recv(_LONGEST)
        except OSError:  # a reset connection still gives what arrived before
            data = b""
        *lines, self._unread = (self._unread + data).split(b"\n")
        return [json.loads(line) for line in lines] if data else None

    def take_early(self) -> list[Message]:
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


class SocketChannel:
    """Links to some ranks, of which a lost one is noticed at once.

    Args:
        links: The links.
    """

    patience = 3.0  # for the thread that reads; the kernel needs no time

    def __init__(self, links: Sequence[Link]) -> None:
        self._links = links
        self._selector = selectors.DefaultSelector()
        for link in links:
            self._selector.register(link.socket, selectors.EVENT_READ, link)

    @property
    def is_open(self) -> bool:
        """Whether a message may still arrive."""
        return bool(self._selector.get_map())

    def send(self, **content: Any) -> None:
        """Send a message to all ranks of the channel; those that are gone miss it."""
        for link in self._links:
            link.send(**content)

    def receive(self, seconds: float) -> list[tuple[Peer, list[Message] | None]]:
        """Wait for messages and return them by rank; None for a rank that sends no more."""
        early = [(link, messages) for link in self._links if (messages := link.take_early())]
        found: list[tuple[Peer, list[Message] | None]] = [*early]
        for key, _ in self._selector.select(0 if early else seconds):
            messages = key.data.receive()
            if messages is None:
                self._selector.unregister(key.fileobj)
            found.append((key.data, messages))
        return found

    def settle(self) -> None:
        """Do nothing: the kernel delivers what was sent."""

    def close(self) -> None:
        """Close all links."""
        self._selector.close()
        for link in self._links:
            link.close()


def connect(address: tuple[str, int], peer: Peer, introduction: Message) -> Link:
    """Connect to rank 0.

    Args:
        address: Host and port of rank 0.
        peer: Rank 0.
        introduction: Rank, process, host and key of this rank.

    Raises:
        OSError: If rank 0 cannot be reached.
    """
    connection = socket.create_connection(address, _DIRECT)
    _watch_silence(connection)
    link = Link(peer.rank, peer.process, peer.host, socket=connection)
    link.send(**introduction)
    return link


def listen(backlog: int) -> socket.socket:
    """Return a server on a free port of all interfaces, of IPv6 too where the host has it.

    Args:
        backlog: Number of ranks that connect before one is accepted.
    """
    if socket.has_dualstack_ipv6():
        with suppress(OSError):  # IPv6 may be compiled in but switched off
            family = socket.AF_INET6
            return socket.create_server(
                ("", 0), family=family, backlog=backlog, dualstack_ipv6=True
            )
    return socket.create_server(("", 0), backlog=backlog)


def accept_all(server: socket.socket, key: str, count: int) -> list[Link]:
    """Accept connections until ``count`` ranks have introduced themselves with the key.

    Other programs may connect too, such as one that scans ports. They delay no rank.

    Args:
        server: Result of :func:`listen`.
        key: Known to the ranks alone.
        count: Number of ranks that connect.

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
                    arrived = Link(socket=server.accept()[0])
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
