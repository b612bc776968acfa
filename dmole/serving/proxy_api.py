"""The application of the routing proxy: its endpoints, errors in OpenAI's form."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from dmole.serving.errors import ApiError
from dmole.serving.guard import Guard
from dmole.serving.models import list_models
from dmole.serving.proxy import RouteProxy, headers_of


def make_proxy_app(proxy: RouteProxy) -> ASGIApp:
    """Return the application of a routing proxy."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await proxy.close()

    app = Starlette(
        routes=[
            Route("/v1/chat/completions", _complete, methods=["POST"]),
            Route("/v1/models", _models),
            Route("/health", _health),
            Route("/metrics", _metrics),
        ],
        exception_handlers={
            ApiError: _on_api_error,
            HTTPException: _on_http_error,
            Exception: _on_failure,
        },
        lifespan=lifespan,
    )
    app.state.proxy = proxy
    return Guard(app, proxy.limits, proxy.access, proxy.count)


async def _complete(request: Request) -> Response:
    proxy: RouteProxy = request.app.state.proxy
    target = await proxy.target(body := await _json(request))
    response = await proxy.send(body, target, request.headers.get("authorization"))
    try:
        answer = _PassedBack(response, headers_of(response, target))
    except BaseException:
        await response.aclose()
        raise
    proxy.count(response.status_code)
    return answer


class _PassedBack(StreamingResponse):
    """The bytes of an upstream answer as they come; its connection is freed in any case."""

    def __init__(self, upstream: httpx2.Response, headers: dict[str, str]) -> None:
        super().__init__(upstream.aiter_raw(), upstream.status_code, headers)
        self._upstream = upstream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._upstream.aclose()


async def _json(request: Request) -> dict[str, Any]:
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "the body is no JSON", code="invalid_json") from error
    if not isinstance(body, dict):
        raise ApiError(400, "the body must be an object", code="invalid_json")
    return body


async def _models(request: Request) -> Response:
    proxy: RouteProxy = request.app.state.proxy
    export = proxy.export
    entries = list_models(export.base, list(export.adapters), proxy.created)
    return JSONResponse({"object": "list", "data": entries})


async def _health(request: Request) -> Response:
    return JSONResponse({"status": "ready"})


async def _metrics(request: Request) -> Response:
    proxy: RouteProxy = request.app.state.proxy
    return Response(proxy.metrics(), media_type="text/plain; version=0.0.4")


def _answer(request: Request, error: ApiError) -> Response:
    if request.url.path == "/v1/chat/completions":
        request.app.state.proxy.count(error.status)
    return JSONResponse(error.content(), status_code=error.status, headers=error.headers)


async def _on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _answer(request, error)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _answer(request, ApiError(error.status_code, str(error.detail)))


async def _on_failure(request: Request, error: Exception) -> Response:
    return _answer(request, ApiError(500, "the proxy failed to answer; its log says why"))
