"""What the endpoints share: the model behind its engine, the limits, the figures."""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from dmole.data.collate import Collator
from dmole.demo.tiny import TINY_PATH
from dmole.inference.requests import Request
from dmole.messages import one_line
from dmole.serving.alarm import UnseenTaskAlarm
from dmole.serving.engine import Engine
from dmole.serving.errors import ApiError
from dmole.serving.images import ImageReader
from dmole.serving.jobs import Job
from dmole.serving.limits import Access, Limits
from dmole.serving.metrics import Metrics
from dmole.serving.models import check_names, chosen_experts
from dmole.serving.prompts import to_request
from dmole.serving.schema import ChatRequest

if TYPE_CHECKING:
    from dmole.inference import RoutedModel

T = TypeVar("T")
_ORIGIN = "request: sample '0': "  # beginning of each message of the collator


@dataclass(frozen=True)
class Settings:
    """Settings of a server.

    Args:
        limits: What it accepts at most.
        access: Who may ask.
        alarm_window: Routed requests that the unseen-task alarm looks at.
        alarm_share: Share of rejected requests above which it is on.
    """

    limits: Limits = field(default_factory=Limits)
    access: Access = field(default_factory=Access)
    alarm_window: int = 100
    alarm_share: float = 0.5


class Service:
    """A model that answers chat completions.

    Args:
        model: The loaded run; from now on only the engine's thread may use it.
        settings: Limits and access.

    Raises:
        ValueError: If an expert has a name with another meaning in the API.
    """

    def __init__(self, model: RoutedModel, settings: Settings) -> None:
        self.settings = settings
        self.limits = settings.limits
        self.model = model
        self.base = _base_name(model.backbone.name_or_path)
        self.experts = model.experts
        self.common = model.router.common
        self.removed: set[str] = set()  # experts that a client has taken out
        check_names(self.base, self.experts)
        self.created = int(time.time())
        self.engine = Engine(model, self.limits, one_length=model.beams > 1)
        alarm = UnseenTaskAlarm(settings.alarm_window, settings.alarm_share)
        self.metrics = Metrics(self.limits.max_batch, lambda: self.engine.queue_length, alarm)
        self.engine.observer = self.metrics
        self._images = ImageReader(self.limits, settings.access, model.images)
        self._check = _PromptCheck(model)
        # one thread: a tokenizer is not made for several
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="dmole-check")
        self._readers = ThreadPoolExecutor(4, thread_name_prefix="dmole-images")

    async def submit(self, body: ChatRequest) -> Job:
        """Check a chat completion and queue it.

        Raises:
            ApiError: If it is refused.
        """
        experts = chosen_experts(body.model, self.base, self.experts, self.common)
        self.engine.check_room()  # before any work
        asked = body.length
        if asked is not None and asked > self.limits.max_new_tokens:
            raise ApiError(
                400,
                f"max_tokens is {asked}, this server gives at most {self.limits.max_new_tokens}",
                param="max_tokens",
            )
        loop = asyncio.get_running_loop()
        request = await loop.run_in_executor(
            self._readers,
            lambda: to_request(
                body.messages,
                self._images.read,
                self.limits,
                experts=experts,
                max_new_tokens=asked or self.limits.max_new_tokens,
            ),
        )
        request = await loop.run_in_executor(self._pool, self._check, request, asked is not None)
        job = Job(request, body.stop or ())
        self.engine.submit(job)
        return job

    async def change_experts(self, change: Callable[[RoutedModel], T]) -> T:
        """Change the experts between two batches, in the model's thread.

        Args:
            change: Receives the model; raises a `ValueError` if it refuses.

        Raises:
            ValueError: As ``change`` does; the experts are as before.
        """

        def run() -> T:
            result = change(self.model)
            self.experts = self.model.experts
            return result

        return await asyncio.wrap_future(self.engine.between_batches(run))

    def close(self) -> None:
        """End all threads, after what waits has been answered."""
        self.engine.close()
        self._pool.shutdown()
        self._readers.shutdown()


class _PromptCheck:
    """Counts the tokens of a prompt, with a processor of its own, before it is queued."""

    def __init__(self, model: RoutedModel) -> None:
        backbone = model.backbone
        self._collator = Collator(
            copy.deepcopy(backbone.processor), prompts=backbone.prompts, origin=lambda *_: "request"
        )
        self._limit = model.collator.max_length
        self._context = backbone.context_length

    def __call__(self, request: Request, asked: bool) -> Request:
        """Return the request with a length that fits.

        Args:
            request: The request.
            asked: Whether the client asked for its number of new tokens.

        Raises:
            ApiError: If the prompt is too long, its images cannot be decoded, or the template
                refuses it.
        """
        try:
            batch = self._collator([(request.sample("0"), "prompt")], generation=True)
        except ValueError as error:
            reason = one_line(error).removeprefix(_ORIGIN)
            raise ApiError(400, f"the model refuses it: {reason}", param="messages") from error
        tokens = int(batch.inputs["attention_mask"].sum())
        if self._limit is not None and tokens > self._limit:
            raise ApiError(
                400,
                f"the prompt has {tokens} tokens, this model takes at most {self._limit}",
                param="messages",
                code="context_length_exceeded",
            )
        return request if self._context is None else self._fitted(request, tokens, asked)

    def _fitted(self, request: Request, tokens: int, asked: bool) -> Request:
        room = (self._context or 0) - tokens
        if room < 1 or (asked and request.max_new_tokens > room):
            raise ApiError(
                400,
                f"the prompt has {tokens} tokens and the answer may have "
                f"{request.max_new_tokens}, this model takes at most {self._context} together",
                param="max_tokens",
                code="context_length_exceeded",
            )
        return replace(request, max_new_tokens=min(request.max_new_tokens, room))


def _base_name(name_or_path: str) -> str:
    """Return the name of a base model; of a folder, the last part of its path."""
    path = Path(name_or_path)
    if path == TINY_PATH:
        return "tiny"
    return path.name if path.is_absolute() or path.exists() else name_or_path
