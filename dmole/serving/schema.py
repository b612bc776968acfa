"""The body of ``POST /v1/chat/completions``: the part of OpenAI's API that a run can honour.

A setting that would change the answer elsewhere and cannot here is refused, not ignored: decoding
is deterministic, and there are no tools. Keys that never change an answer are accepted.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

_GREEDY = "decoding is deterministic"
NEUTRAL: dict[str, tuple[tuple[Any, ...], str]] = {
    "n": ((1,), f"{_GREEDY}, so every answer would be the same"),
    # 1 is OpenAI's default, which some clients always send
    "temperature": ((0, 1), f"{_GREEDY}; 0 and the default of 1 are accepted and have no effect"),
    "top_p": ((1,), _GREEDY),
    "presence_penalty": ((0,), _GREEDY),
    "frequency_penalty": ((0,), _GREEDY),
    "logit_bias": (({},), _GREEDY),
    "logprobs": ((False,), "probabilities are not returned"),
    "top_logprobs": ((0,), "probabilities are not returned"),
    "tools": (([],), "there are no tools"),
    "tool_choice": (("none", "auto"), "there are no tools"),
    "response_format": (({"type": "text"},), "answers are plain text"),
    "modalities": ((["text"],), "answers are plain text"),
}
"""Settings that must have one of some values, with the reason; null is always accepted."""

WITHOUT_EFFECT = (
    "user",
    "seed",
    "metadata",
    "store",
    "service_tier",
    "parallel_tool_calls",
    "prompt_cache_key",
    "safety_identifier",
)
"""Keys that never change an answer of this server."""


def _as_parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _as_list(stop: Any) -> Any:
    return [stop] if isinstance(stop, str) else stop


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class ImageUrl(_Strict):
    """Where an image is; ``detail`` has no effect."""

    url: str
    detail: str | None = None


class Part(_Strict):
    """A part of a message: a text or an image."""

    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: ImageUrl | None = None

    @model_validator(mode="after")
    def _has_its_content(self) -> Part:
        other = {"text": "image_url", "image_url": "text"}[self.type]
        if getattr(self, self.type) is None or getattr(self, other) is not None:
            raise ValueError(f"a part of type {self.type} needs {self.type} alone")
        return self


class Message(BaseModel):
    """One turn. Keys of an answer that a client sends back, such as ``refusal``, are dropped."""

    model_config = ConfigDict(strict=True, extra="ignore")
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[Part], BeforeValidator(_as_parts), Field(min_length=1)]
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None


class StreamOptions(_Strict):
    """Options of a streamed answer."""

    include_usage: bool | None = None


class ChatRequest(_Strict):
    """The body of a chat completion."""

    model: Annotated[str, Field(min_length=1, max_length=500)]
    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=1000)]] | None,
        BeforeValidator(_as_list),
        Field(max_length=4),
    ] = None

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        for name, (accepted, reason) in NEUTRAL.items():
            value = body.get(name)
            if value is not None and not any(_same(value, one) for one in accepted):
                values = " or ".join(str(one) for one in accepted)
                raise ValueError(f"{name} must be {values}: {reason}")
        dropped = {*NEUTRAL, *WITHOUT_EFFECT}
        return {key: value for key, value in body.items() if key not in dropped}

    @model_validator(mode="after")
    def _has_one_length(self) -> ChatRequest:
        lengths = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(lengths) > 1:
            raise ValueError("max_tokens and max_completion_tokens differ: send one of them")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream: true")
        return self

    @property
    def length(self) -> int | None:
        """Most tokens of the answer that the client asks for; None leaves it to the server."""
        return self.max_completion_tokens or self.max_tokens


def _same(value: Any, accepted: Any) -> bool:
    return isinstance(value, bool) == isinstance(accepted, bool) and bool(value == accepted)
