"""``POST /v1/chat/completions``: whole answers and streamed ones."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from dmole.inference.requests import Answer
from dmole.messages import one_line
from dmole.routing import gate_set_name
from dmole.serving.errors import ApiError
from dmole.serving.jobs import Ended, Event, Job
from dmole.serving.schema import ChatRequest
from dmole.serving.service import Service

T = TypeVar("T")
log = logging.getLogger("dmole")
router = APIRouter()

EXPERTS_HEADER = "X-Dmole-Experts"
"""Names the experts of a whole answer; of a streamed one, its last chunk does."""

CLIENT_LEFT = 499
"""Status in the metrics of a request whose client left before its answer; nobody receives it."""


@router.post("/v1/chat/completions")
async def complete(body: ChatRequest, request: Request) -> Response:
    """Answer a conversation."""
    service: Service = request.app.state.service
    record = _Record(service, body.model)
    try:
        job = await _unless_left(service.submit(body), request)
        head = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": body.model,
        }
        if body.stream:
            # the first event decides the status, so a refusal is no stream with status 200
            first = await _or_cancel(job.next_event(), job, request)
            if isinstance(first, Exception):
                raise first
            usage = body.stream_options is not None and bool(body.stream_options.include_usage)
            return _EventStream(job, record, _chunks(job, first, head, usage, record))
        text, end = await _or_cancel(job.end(), job, request)
    except Exception as error:
        failure = as_api_error(error)
        record.end(failure.status)
        raise failure from error
    record.end(200)
    return JSONResponse(
        _completion(head, text, end), headers={EXPERTS_HEADER: gate_set_name(end.answer.experts)}
    )


class _Record:
    """Counts a request once, when it has ended."""

    def __init__(self, service: Service, model: str) -> None:
        self._service = service
        self._model = model
        self._start = time.monotonic()
        self.status = CLIENT_LEFT

    def end(self, status: int) -> None:
        known = status != 404  # an unknown name would be a time series of its own
        seconds = time.monotonic() - self._start if status == 200 else None
        self._service.metrics.count_request(status, self._model if known else "", seconds)


class _EventStream(StreamingResponse):
    """A streamed answer, which frees the model however the response ends."""

    def __init__(self, job: Job, record: _Record, chunks: AsyncIterator[str]) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(chunks, media_type="text/event-stream", headers=headers)
        self._job = job
        self._record = record

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._job.cancel()  # does nothing to a job that has ended
            self._record.end(self._record.status)


def as_api_error(error: Exception) -> ApiError:
    """Return the error that a client sees; the cause of a failure of the server is logged alone."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ValueError):  # the model refuses this request
        return ApiError(400, one_line(error))
    log.error("a request failed", exc_info=error)
    return ApiError(500, "the server failed to answer; its log says why")


async def _or_cancel(work: Awaitable[T], job: Job, request: Request) -> T:
    """Return the result of some work; cancel the job if the client leaves before."""
    try:
        return await _unless_left(work, request)
    except BaseException:
        job.cancel()
        raise


async def _unless_left(work: Awaitable[T], request: Request) -> T:
    """Return the result of some work.

    Raises:
        ApiError: If the client leaves before it is done.
    """
    task = asyncio.ensure_future(work)
    left = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((task, left), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(CLIENT_LEFT, "the client has left")
        return task.result()
    finally:
        task.cancel()
        left.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


# -- the form of answers -------------------------------------------------------------------


def _completion(head: dict[str, Any], text: str, end: Ended) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {
        "index": 0,
        "message": message,
        "finish_reason": end.finish_reason,
        "logprobs": None,
    }
    return {
        **head,
        "object": "chat.completion",
        "choices": [choice],
        "usage": _usage(end.answer),
        "dmole": routing_of(end.answer),
    }


def _usage(answer: Answer) -> dict[str, int]:
    prompt, new = answer.prompt_tokens, answer.new_tokens
    return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}


def routing_of(answer: Answer) -> dict[str, Any]:
    """Return what the router found: experts, and losses with thresholds by expert."""
    return {
        "experts": list(answer.experts),
        "losses": dict(answer.losses),
        "thresholds": {name: answer.thresholds[name] for name in answer.losses},
    }


async def _chunks(
    job: Job, event: Event, head: dict[str, Any], usage: bool, record: _Record
) -> AsyncIterator[str]:
    """Yield the lines of a streamed answer as server-sent events.

    Args:
        job: The request.
        event: Its first event.
        head: Keys that all chunks share.
        usage: Whether a last chunk counts the tokens.
        record: Receives the status of the whole answer.
    """
    start = head | {"object": "chat.completion.chunk"} | ({"usage": None} if usage else {})
    yield _chunk(start, {"role": "assistant", "content": ""})
    while isinstance(event, str):
        yield _chunk(start, {"content": event})
        event = await job.next_event()
    if isinstance(event, Exception):
        record.status = 500
        yield _event(as_api_error(event).content())
        return
    record.status = 200
    yield _chunk(start, {}, event.finish_reason, dmole=routing_of(event.answer))
    if usage:
        yield _event(start | {"choices": [], "usage": _usage(event.answer)})
    yield "data: [DONE]\n\n"


def _chunk(
    start: dict[str, Any], delta: dict[str, str], reason: str | None = None, **more: Any
) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
    return _event(start | {"choices": [choice]} | more)


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"
