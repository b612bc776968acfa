"""Conversations of lmms-eval as requests, and samples as conversations of lmms-eval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dmole.data.decoding import AS_STORED, ImageOptions
from dmole.data.sample import IMAGE_PLACEHOLDER, ImageSource, Turn
from dmole.data.templates import content_parts
from dmole.inference.requests import Request, image_source

Message = Mapping[str, Any]
"""``role`` and ``content``, a list of parts of type ``text`` or ``image``."""


def to_request(
    messages: Sequence[Message],
    *,
    max_new_tokens: int,
    experts: Sequence[str] | None = None,
    options: ImageOptions = AS_STORED,
) -> Request:
    r"""Return the request that some messages make. A line break separates images and texts.

    Args:
        messages: The turns, the user's last; a part of type ``image`` has it under ``url``, as a
            path or an image of PIL.
        max_new_tokens: Maximum number of tokens of the answer.
        experts: Experts that answer; None leaves the choice to the router.
        options: How the images become RGB pictures.

    Raises:
        ValueError: If a part is neither text nor image, a text holds the placeholder of an image,
            or the order of the turns is another.

    Example:
        >>> parts = [{"type": "image", "url": "star.png"}, {"type": "text", "text": "how many?"}]
        >>> to_request([{"role": "user", "content": parts}], max_new_tokens=4).turns[0].text
        '<image>\nhow many?'
    """
    images: list[ImageSource] = []
    turns = [Turn(message["role"], _text(message, images, options)) for message in messages]
    chosen = None if experts is None else tuple(experts)
    return Request(tuple(turns), tuple(images), max_new_tokens, chosen)


def _text(message: Message, images: list[ImageSource], options: ImageOptions) -> str:
    """Return the text of a turn with placeholders; append its images to the list."""
    pieces: list[str] = []
    for part in message["content"]:
        if part["type"] == "image":
            images.append(image_source(part["url"], options))
            pieces.append(IMAGE_PLACEHOLDER)
        elif part["type"] != "text":
            raise ValueError(f"a dmole model reads images and texts, not {part['type']}")
        elif IMAGE_PLACEHOLDER in part["text"]:
            raise ValueError(f"a text holds {IMAGE_PLACEHOLDER}, which stands for an image")
        elif part["text"]:
            pieces.append(part["text"])
    return "\n".join(pieces)


def to_messages(turns: Sequence[Turn], images: Sequence[Any]) -> list[dict[str, Any]]:
    r"""Return turns with placeholders as messages, the inverse of :func:`to_request`.

    Args:
        turns: The turns.
        images: One for each placeholder.

    Example:
        >>> to_messages([Turn("user", "<image>\nhow many?")], ["star.png"])[0]["content"]
        [{'type': 'image', 'url': 'star.png'}, {'type': 'text', 'text': 'how many?'}]
    """
    remaining = iter(images)
    return [
        {
            "role": turn.role,
            "content": [
                part if part["type"] == "text" else {"type": "image", "url": next(remaining)}
                for part in content_parts(turn.text)
            ],
        }
        for turn in turns
    ]


def survives(turns: Sequence[Turn]) -> bool:
    r"""Return whether turns are the same after :func:`to_messages` and :func:`to_request`.

    They are not if an image stands in a line with text.

    Example:
        >>> survives([Turn("user", "<image>\nhow many?")]), survives([Turn("user", "a <image>")])
        (True, False)
    """
    placeholders = sum(turn.text.count(IMAGE_PLACEHOLDER) for turn in turns)
    messages = to_messages(turns, ["-"] * placeholders)
    return [_text(message, [], AS_STORED) for message in messages] == [t.text for t in turns]
