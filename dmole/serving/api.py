"""The application: endpoints, errors in OpenAI's form, the page."""

from __future__ import annotations

import logging
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from dmole.serving import admin, chat
from dmole.serving.errors import ApiError, invalid_request
from dmole.serving.guard import Guard
from dmole.serving.models import chosen_experts, list_models
from dmole.serving.service import Service

log = logging.getLogger("dmole")

_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


def make_app(service: Service) -> ASGIApp:
    """Return the application of a server.

    Args:
        service: The model; its engine must have been started.
    """
    # the interactive pages of FastAPI load scripts from elsewhere
    app = FastAPI(title="dmole", docs_url=None, redoc_url=None)
    app.state.service = service
    app.include_router(chat.router)
    app.include_router(admin.router)
    _add_pages(app, service)
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_failure)
    count = service.metrics.count_request
    return Guard(app, service.limits, service.settings.access, lambda status: count(status, ""))


def _add_pages(app: FastAPI, service: Service) -> None:
    page = files("dmole.serving").joinpath("page/index.html").read_text(encoding="utf-8")

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        experts = [expert for expert in service.experts if expert != service.common]
        entries = list_models(service.base, experts, service.created)
        return {"object": "list", "data": entries}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        experts = chosen_experts(name, service.base, service.experts, service.common)
        entries = list_models(service.base, [name], service.created)
        place = 0 if experts is None else 2 if experts else 1
        return entries[place]

    @app.get("/health")
    @app.get("/health/ready")
    async def ready() -> JSONResponse:
        alive = service.engine.is_alive
        content = {"status": "ready" if alive else "stopped", "queue": service.engine.queue_length}
        return JSONResponse(content, status_code=200 if alive else 503)

    @app.get("/health/live")
    async def live() -> dict[str, str]:
        return {"status": "live"}

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/")
    async def index() -> HTMLResponse:
        headers = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff"}
        return HTMLResponse(page, headers=headers)


def _response(error: ApiError) -> JSONResponse:
    return JSONResponse(error.content(), status_code=error.status, headers=error.headers)


async def _on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _response(error)


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    refusal = invalid_request(error.errors())
    if request.url.path == "/v1/chat/completions":
        request.app.state.service.metrics.count_request(refusal.status, "")
    return _response(refusal)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _response(ApiError(error.status_code, str(error.detail)))


async def _on_failure(request: Request, error: Exception) -> Response:
    return _response(ApiError(500, "the server failed to answer; its log says why"))
