"""A proxy that routes: it chooses the adapter of each request and passes the request on."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import quote

import httpx2
from prometheus_client import CollectorRegistry, Counter, generate_latest
from pydantic import Field, TypeAdapter, ValidationError

from dmole.inference.requests import Request
from dmole.inference.route_only import RouteOnly
from dmole.messages import one_line
from dmole.routing import gate_set_name
from dmole.run.export_file import Export
from dmole.serving.errors import ApiError, invalid_request
from dmole.serving.images import ImageReader
from dmole.serving.limits import Access, Limits
from dmole.serving.models import check_names, chosen_experts
from dmole.serving.prompts import to_request
from dmole.serving.schema import Message

log = logging.getLogger("dmole")

EXPERTS_HEADER = "X-Dmole-Experts"
"""The gate set that the router, or the client, has chosen."""
MODEL_HEADER = "X-Dmole-Model"
"""The model that the upstream server was asked for."""
FALLBACK_HEADER = "X-Dmole-Fallback"
"""Set if the gate set has no adapter: the expert that answers in its place."""

_MESSAGES = TypeAdapter(Annotated[list[Message], Field(min_length=1)])
_CONNECT_SECONDS = 10.0
_PASSED_BACK = ("content-type", "content-encoding", "retry-after", "cache-control", "x-request-id")

_IN_HEADERS = "/+:@=,"  # characters of names that stay as they are, besides letters and digits


@dataclass(frozen=True)
class Target:
    """Where a request goes.

    Args:
        experts: The gate set.
        model: Model of the upstream server.
        fallback: Whether the model is the first expert alone, since the set has no adapter.
    """

    experts: tuple[str, ...]
    model: str
    fallback: bool = False


@dataclass(frozen=True)
class Upstream:
    """The server that answers.

    Args:
        url: Its address up to ``/v1``.
        key: Sent as its API key; None passes on the key of the client if the proxy asks for none.
        seconds: Most seconds between two parts of an answer.
    """

    url: str
    key: str | None = None
    seconds: float = 600.0

    def __post_init__(self) -> None:
        """Refuse an address that no request can be sent to."""
        parts = httpx2.URL(self.url)
        if parts.scheme not in ("http", "https") or not parts.host:
            raise ValueError(f"--upstream must be http://host:port/v1, got {self.url!r}")


class RouteProxy:
    """Chooses the adapter of requests and passes them on.

    Args:
        router: Base model and router.
        export: Names the adapters.
        upstream: The server that has them.
        limits: What a request may hold; as for ``dmole serve``.
        access: Who may ask.

    Raises:
        ValueError: If an expert has a name with another meaning in the API.
    """

    def __init__(
        self, router: RouteOnly, export: Export, upstream: Upstream, limits: Limits, access: Access
    ) -> None:
        check_names(export.base, export.experts)
        self.export = export
        self.limits = limits
        self.access = access
        self.created = int(time.time())
        self.registry = CollectorRegistry()
        self._router = router
        self._upstream = upstream
        self._by_set = {frozenset(names): name for name, names in export.adapters.items()}
        self._images = ImageReader(limits, Access(), router.images)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="dmole-route")
        self._readers = ThreadPoolExecutor(4, thread_name_prefix="dmole-images")
        self._waiting = 0
        timeout = httpx2.Timeout(upstream.seconds, connect=_CONNECT_SECONDS)
        self._client = httpx2.AsyncClient(timeout=timeout, limits=httpx2.Limits())
        self._requests = Counter(
            "dmole_proxy_requests", "Requests by status.", ["status"], registry=self.registry
        )
        self._sent = Counter(
            "dmole_proxy_sent", "Requests by upstream model.", ["model"], registry=self.registry
        )
        self._fallbacks = Counter(
            "dmole_proxy_fallbacks",
            "Requests whose gate set has no adapter.",
            ["experts"],
            registry=self.registry,
        )

    def count(self, status: int) -> None:
        """Count an answered request."""
        self._requests.labels(str(status)).inc()

    def metrics(self) -> bytes:
        """Return the figures in Prometheus' text format."""
        return generate_latest(self.registry)

    async def close(self) -> None:
        """End the threads and the connections."""
        await self._client.aclose()
        self._readers.shutdown()
        self._thread.shutdown()

    async def target(self, body: Mapping[str, Any]) -> Target:
        """Return where a chat completion goes.

        Raises:
            ApiError: If the messages are refused, as by ``dmole serve``, there is no such model, or
                too many requests wait.
        """
        try:
            messages = _MESSAGES.validate_python(body.get("messages"))
        except ValidationError as error:
            errors = [{**each, "loc": ("messages", *each["loc"])} for each in error.errors()]
            raise invalid_request(errors) from error
        model = body.get("model")
        if not isinstance(model, str):
            raise ApiError(400, "model must be a text", param="model")
        chosen = chosen_experts(model, self.export.base, self.export.experts)
        if chosen is None:
            experts = await self._routed(messages)
        else:
            await self._checked(messages)
            experts = chosen
        if not experts:
            return Target((), self.export.base)
        name = self._by_set.get(frozenset(experts))
        if name is not None:
            return Target(experts, name)
        if chosen is not None:
            raise ApiError(
                404,
                f"there is no adapter for {gate_set_name(experts)}; there are "
                f"{', '.join(self.export.adapters)}",
                param="model",
                code="model_not_found",
            )
        self._fallbacks.labels(gate_set_name(experts)).inc()
        return Target(experts, experts[0], fallback=True)

    async def _checked(self, messages: list[Message]) -> Request:
        """Return the request that messages make, with images whose headers were read.

        Images are data URIs alone, so the upstream server is sent no address to fetch.
        """
        return await asyncio.get_running_loop().run_in_executor(
            self._readers,
            lambda: to_request(
                messages, self._images.read, self.limits, experts=None, max_new_tokens=1
            ),
        )

    async def _routed(self, messages: list[Message]) -> tuple[str, ...]:
        """Return the router's choice."""
        if self._waiting >= self.limits.max_queue:
            raise ApiError(429, "too many requests wait", headers={"Retry-After": "1"})

        self._waiting += 1
        try:
            request = await self._checked(messages)
            route, loop = self._router.route_requests, asyncio.get_running_loop()
            return (await loop.run_in_executor(self._thread, route, [request]))[0].experts
        except ValueError as error:  # an image or a prompt that the model does not take
            reason = one_line(error).removeprefix("request 0: ")
            raise ApiError(400, f"the model refuses it: {reason}", param="messages") from error
        finally:
            self._waiting -= 1

    async def send(
        self, body: Mapping[str, Any], target: Target, authorization: str | None
    ) -> httpx2.Response:
        """Pass a request on and return the head of the answer; its body is still to be read.

        Args:
            body: The request.
            target: Where it goes.
            authorization: Header of the client, passed on if neither server has a key.

        Raises:
            ApiError: If the upstream server cannot be reached or does not answer in time.
        """
        headers = {"Content-Type": "application/json"}
        if self._upstream.key is not None:
            headers["Authorization"] = f"Bearer {self._upstream.key}"
        elif authorization is not None and self.access.api_key is None:
            headers["Authorization"] = authorization
        url = f"{self._upstream.url.rstrip('/')}/chat/completions"
        content = json.dumps({**body, "model": target.model}).encode()
        request = self._client.build_request("POST", url, content=content, headers=headers)
        try:
            response = await self._client.send(request, stream=True)
        except httpx2.TimeoutException as error:
            raise ApiError(504, "the upstream server does not answer in time") from error
        except httpx2.TransportError as error:
            log.warning("upstream %s: %s", url, one_line(error))
            raise ApiError(502, "the upstream server cannot be reached") from error
        self._sent.labels(target.model).inc()
        return response


def headers_of(response: httpx2.Response, target: Target) -> dict[str, str]:
    """Return the headers of the answer to the client.

    A header holds ASCII alone, so other characters of a model's name are percent-encoded.
    """
    own = {EXPERTS_HEADER: gate_set_name(target.experts), MODEL_HEADER: target.model}
    if target.fallback:
        own[FALLBACK_HEADER] = target.experts[0]
    kept = {name: response.headers[name] for name in _PASSED_BACK if name in response.headers}
    return kept | {name: quote(value, safe=_IN_HEADERS) for name, value in own.items()}
