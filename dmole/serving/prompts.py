"""Turns the messages of a chat completion into a request to the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dmole.data.sample import IMAGE_PLACEHOLDER, ImageSource, Turn
from dmole.inference.requests import Request
from dmole.serving.errors import ApiError
from dmole.serving.limits import Limits
from dmole.serving.schema import Message

_SYSTEM = ("system", "developer")


def to_request(
    messages: Sequence[Message],
    read_image: Callable[[str], ImageSource],
    limits: Limits,
    *,
    experts: tuple[str, ...] | None,
    max_new_tokens: int,
) -> Request:
    """Return the request that some messages make.

    Args:
        messages: An optional system message, then user and assistant in turn, the user last.
        read_image: Returns the image at an address; called once for each, in order.
        limits: Gives the most characters and images.
        experts: Experts to use; None leaves the choice to the router.
        max_new_tokens: Most tokens of the answer.

    Raises:
        ApiError: If the order of the messages is another, one is empty, an image stands outside
            of a user message, or a limit is exceeded.
    """
    _check_order(messages)
    characters = sum(len(part.text or "") for message in messages for part in message.content)
    if characters > limits.max_prompt_chars:
        raise _refused(
            f"the messages have {characters} characters, this server takes at most "
            f"{limits.max_prompt_chars}"
        )
    urls = [
        part.image_url.url
        for message in messages
        for part in message.content
        if part.image_url is not None
    ]
    if len(urls) > limits.max_images:
        raise _refused(
            f"the messages have {len(urls)} images, this server takes at most {limits.max_images}"
        )
    turns = tuple(_turn(index, message) for index, message in enumerate(messages))
    images = tuple(read_image(url) for url in urls)
    return Request(turns, images, max_new_tokens, experts)


def _check_order(messages: Sequence[Message]) -> None:
    first = 1 if messages[0].role in _SYSTEM else 0
    roles = [message.role for message in messages[first:]]
    expected = ["user" if index % 2 == 0 else "assistant" for index in range(len(roles))]
    if roles != expected or len(roles) % 2 == 0:
        raise _refused(
            "messages must be an optional system message, then user and assistant in turn, and "
            "end with a user message"
        )


def _turn(index: int, message: Message) -> Turn:
    pieces = []
    for part in message.content:
        if part.image_url is not None:
            if message.role != "user":
                raise _refused(f"message {index}: only a user message may hold an image")
            pieces.append(IMAGE_PLACEHOLDER)
            continue
        if IMAGE_PLACEHOLDER in (part.text or ""):
            raise _refused(f"message {index}: a text may not hold {IMAGE_PLACEHOLDER}")
        pieces.append(part.text or "")
    text = "\n".join(pieces)
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise _refused(f"message {index}: a text may not hold half a surrogate pair")
    if not text.strip():
        raise _refused(f"message {index} is empty")
    if message.role == "user" or message.role == "assistant":
        return Turn(message.role, text)
    return Turn("system", text)


def _refused(message: str) -> ApiError:
    return ApiError(400, message, param="messages")
