"""Clients that are slow or leave hold up nobody else."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from raw_requests import chat, send
from serving_runs import Question, Served, served

from dmole.inference import Answer, RoutedModel
from dmole.serving.limits import Limits


@pytest.fixture
def connections(server: Served) -> Iterator[Callable[[bytes], socket.socket]]:
    """Open connections that send some bytes and then nothing."""
    opened: list[socket.socket] = []

    def connect(content: bytes) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", server.port), timeout=60)
        opened.append(connection)
        connection.sendall(content)
        return connection

    yield connect
    for connection in opened:
        connection.close()


@pytest.fixture(scope="module")
def server(model: RoutedModel) -> Iterator[Served]:
    limits = Limits(read_seconds=3, max_new_tokens=8, max_wait_ms=0, max_connections=240)
    with served(model, limits) as running:
        yield running


HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
BODY = b"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"


BEGINNINGS = [b"", HEAD[:20], HEAD, HEAD + BODY]


def test_200_connections_that_send_no_whole_request_stop_nobody_and_are_closed(
    connections: Callable[[bytes], socket.socket],
    server: Served,
    questions: list[Question],
    offline: list[Answer],
) -> None:
    opened = [(begin, connections(begin)) for begin in BEGINNINGS * 50]
    with server.client() as client:
        found = client.chat.completions.create(
            model="auto", messages=questions[0].messages, max_tokens=4
        )
    assert found.choices[0].message.content == offline[0].text
    for begin, connection in opened:
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := connection.recv(4096):  # fails after the timeout if it stays open
                received += piece
        assert (b" 408 " in received) == (begin == HEAD + BODY)


def test_a_client_that_sends_a_byte_at_a_time_is_closed(
    server: Served, connections: Callable[[bytes], socket.socket]
) -> None:
    connection = connections(HEAD)
    sent = 0
    with contextlib.suppress(ConnectionError):
        for sent in range(600):  # ten times the limit on the head  # noqa: B007
            connection.sendall(b"X")
            time.sleep(0.05)
    assert sent < 599


def whole_request(stream: bool) -> bytes:
    body = json.dumps(chat(stream=stream)).encode()
    length = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return HEAD + length.encode() + body


class Endless:
    """Answers until the client leaves, in place of the model."""

    def __init__(self) -> None:
        self.entered, self.left = threading.Event(), threading.Event()

    def __call__(self, requests: Any, on_text: Callable[[int, str], bool]) -> list[Answer]:
        self.entered.set()
        for row in range(len(requests)):
            while on_text(row, "word " * 500):  # soon more than all buffers hold
                time.sleep(0.001)
        self.left.set()
        return [Answer("", (), finish_reason="cancelled") for _ in requests]


@pytest.mark.parametrize("stream", [True, False])
def test_a_request_ends_when_its_client_leaves(
    stream: bool,
    server: Served,
    connections: Callable[[bytes], socket.socket],
    model: RoutedModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    endless = Endless()
    with monkeypatch.context() as patch:
        patch.setattr(model, "answer", endless)
        connection = connections(whole_request(stream=stream))
        assert endless.entered.wait(60)
        if stream:
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        connection.close()
        assert endless.left.wait(60)
    assert send(server, chat(max_tokens=1))[0] == 200
    assert 'status="499"' in server.service.metrics.text().decode()


def test_a_client_that_does_not_read_its_answer_loses_its_connection(
    model: RoutedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = Endless()
    with served(model, Limits(write_seconds=1, max_wait_ms=0)) as server:
        monkeypatch.setattr(model, "answer", endless)
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(whole_request(stream=True))
            assert endless.left.wait(60)  # nothing was read, and the model was set free
            end = time.monotonic() + 60
            while server.server.server_state.connections and time.monotonic() < end:
                time.sleep(0.05)
            assert not server.server.server_state.connections  # the client still holds its end
        monkeypatch.undo()
        assert send(server, chat(max_tokens=1))[0] == 200
