"""Introductions of ranks, as they arrive over a network."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Sequence

import pytest

from dmole.run import links

KEY = "secret"
FAILED = {"failed": "rank 1 failed: the image is broken"}


def introduction(key: str = KEY) -> dict[str, object]:
    return {"key": key, "rank": 1, "process": 4, "host": "node1"}


def lines(*messages: object) -> bytes:
    return b"".join(json.dumps(message).encode() + b"\n" for message in messages)


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def connect(server: socket.socket, *parts: bytes) -> socket.socket:
    connection = socket.create_connection(server.getsockname())
    for part in parts:
        connection.sendall(part)
    return connection


def received(link: links.Link) -> Sequence[object]:
    """Return all messages of a rank that has closed its connection."""
    messages = list(link.take_early())
    while (more := link.receive()) is not None:
        messages += more
    return messages


@pytest.mark.parametrize("cut", [0, 7])
def test_what_a_rank_sends_together_with_its_introduction_is_kept(
    server: socket.socket, cut: int
) -> None:
    sent = lines(introduction(), FAILED, FAILED)
    with connect(server, sent[: len(sent) - cut]) as connection:
        [link] = links.accept_all(server, KEY, 1)
        connection.sendall(sent[len(sent) - cut :])
    assert received(link) == [FAILED, FAILED]
    assert link.name == "rank 1 (process 4 on node1)"
    link.close()


def test_an_introduction_may_arrive_in_parts(
    server: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent, introduce = lines(introduction(), FAILED), links.Link.introduce
    asked: list[bool] = []

    def first_part_only(link: links.Link, key: str) -> bool:
        asked.append(introduce(link, key))
        if len(asked) == 1:
            connection.sendall(sent[5:])
        return asked[-1]

    monkeypatch.setattr(links.Link, "introduce", first_part_only)
    with connect(server, sent[:5]) as connection:
        [link] = links.accept_all(server, KEY, 1)
    assert asked == [False, True]
    assert received(link) == [FAILED]
    link.close()


@pytest.mark.parametrize(
    "stranger",
    [b"", b"GET / HTTP/1.1\n", b"[1]\n", b"\xff\n", b"x" * 65536, lines(introduction("other"))],
)
def test_other_programs_that_connect_delay_no_rank(server: socket.socket, stranger: bytes) -> None:
    with connect(server, stranger) as other, connect(server, lines(introduction(), FAILED)) as rank:
        [link] = links.accept_all(server, KEY, 1)
        rank.shutdown(socket.SHUT_WR)
        assert received(link) == [FAILED]
        other.settimeout(5)
        assert closed(other)
        link.close()


def closed(connection: socket.socket) -> bool:
    """Return whether the other side has closed a connection."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_a_rank_that_does_not_connect_is_an_error_in_time(
    server: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "_TIMEOUT", 0.1)
    with pytest.raises(OSError, match="1 ranks have not connected to rank 0"):
        links.accept_all(server, KEY, 1)


def test_what_arrived_before_a_reset_is_read(server: socket.socket) -> None:
    rank = connect(server, lines(introduction()))
    [link] = links.accept_all(server, KEY, 1)
    link.send(ended=True)
    rank.recv(1)  # the rest stays unread, so closing resets the connection
    rank.sendall(lines(FAILED))
    rank.close()
    link.send(ended=True)
    assert received(link) == [FAILED]
    link.close()
