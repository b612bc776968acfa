"""Stands before the application: who may ask, how much they may send, how long they may take.

A plain ASGI middleware, since it must decide before the body of a request is read.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dmole.serving.errors import ApiError
from dmole.serving.limits import Access, Limits

OPEN = ("/", "/health", "/health/live", "/health/ready")
"""Paths that need no key: the page, which sends the key with its requests, and the probes."""

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
_DISCARD_FACTOR = 8  # a client that sends too much is read up to here, so that it sees the error


class Guard:
    """Checks key, host, origin, type and size, and reads the body of a request within a time limit.

    The application receives the whole body at once. A client that stops sending its request
    loses the connection and holds up nobody else.

    Args:
        app: The application.
        limits: Gives the most bytes and seconds.
        access: Has the key.
        count: Receives the status of each request that is refused here.
    """

    def __init__(
        self, app: ASGIApp, limits: Limits, access: Access, count: Callable[[int], None]
    ) -> None:
        self._app = app
        self._count = count
        self._limits = limits
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with an error."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check(scope)
            body = await self._read(scope, receive)
        except ApiError as error:
            self._count(error.status)
            await self._discard(receive)
            await _send_error(send, error)
            return
        if body is None:  # the client has left
            return
        await self._app(scope, _replay(body, receive), send)

    def _check(self, scope: Scope) -> None:
        if self._access.check_host and _host_of(scope) not in LOCAL_NAMES:
            raise ApiError(403, "this server answers requests to localhost alone")
        key = self._access.api_key
        if key is None:
            _check_origin(scope)
        elif scope["path"] not in OPEN:
            _check_key(scope, key)
        if scope["method"] == "POST" and _type_of(scope) != b"application/json":
            # a page of another site can send any other type without asking first
            raise ApiError(415, "send the body with 'Content-Type: application/json'")

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """Return the body; None if the client has left."""
        most = self._limits.max_body_bytes
        length = _header(scope, b"content-length")
        if length.isdigit() and int(length[:20]) > most:
            raise _too_large(most)
        try:
            with anyio.fail_after(self._limits.read_seconds):
                body = bytearray()
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    if len(body) > most:
                        raise _too_large(most)
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            seconds = self._limits.read_seconds
            raise ApiError(408, f"the body did not arrive within {seconds:g} seconds") from None

    async def _discard(self, receive: Receive) -> None:
        """Read some of what a refused client still sends; else it sees a reset, not the error."""
        left = self._limits.max_body_bytes * _DISCARD_FACTOR
        try:
            with anyio.fail_after(min(2.0, self._limits.read_seconds)):
                while left > 0:
                    message = await receive()
                    left -= len(message.get("body", b""))
                    if message["type"] == "http.disconnect" or not message.get("more_body", False):
                        return
        except TimeoutError:
            return


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a ``receive`` that gives the body once and then waits for the client to leave."""
    messages: Iterator[Message] = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def replay() -> Message:
        message = next(messages, None)
        return await receive() if message is None else message

    return replay


def _check_key(scope: Scope, key: str) -> None:
    kind, _, given = _header(scope, b"authorization").partition(b" ")
    if kind.lower() != b"bearer" or not hmac.compare_digest(given.strip(), key.encode()):
        raise ApiError(
            401,
            "this server needs its API key: send 'Authorization: Bearer KEY'",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )


def _check_origin(scope: Scope) -> None:
    """Refuse a page of another site, which a browser names in the header ``Origin``."""
    origin = _header(scope, b"origin").lower()
    host = _header(scope, b"host").lower()
    if origin and origin not in (b"http://" + host, b"https://" + host):
        raise ApiError(403, "pages of other sites may ask with an API key alone")


def _type_of(scope: Scope) -> bytes:
    return _header(scope, b"content-type").partition(b";")[0].strip().lower()


def _header(scope: Scope, name: bytes) -> bytes:
    return next((value for key, value in scope["headers"] if key == name), b"")


def _host_of(scope: Scope) -> str | None:
    try:
        return urlsplit("//" + _header(scope, b"host").decode("latin-1")).hostname
    except ValueError:
        return None


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"the body has more than {most} bytes", code="body_too_large")


async def _send_error(send: Send, error: ApiError) -> None:
    content = json.dumps(error.content()).encode()
    headers: list[Any] = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
        (b"connection", b"close"),
        *((key.lower().encode(), value.encode()) for key, value in error.headers.items()),
    ]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
