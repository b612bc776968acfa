"""Content in parts: a sequence of texts and images, the form of OpenAI and TRL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dmole.data.sample import IMAGE_PLACEHOLDER
from dmole.data.shapes.checks import has_content, short
from dmole.data.shapes.pictures import check_row
from dmole.data.shapes.plain import rest_of
from dmole.data.shapes.shape import ImageRef

_USED = {"type", "text", "image", "image_url", "url", "path", "bytes"}
_SIZES = ("min_pixels", "max_pixels", "resized_height", "resized_width", "base64")
"""Keys that change the image given to a model; they are not supported."""

_SOURCES = ("image", "image_url", "url", "path")
_DETAILS = (None, "auto", "high")
"""Values of OpenAI's ``detail`` under which an image keeps its size."""


def read_parts(
    parts: Sequence[Any], position: int
) -> tuple[str, list[ImageRef | None], list[dict[str, Any]]]:
    """Return the text of a message, its images and the keys of its parts that no reader uses.

    A line break separates text and image, the inverse of how a chat template splits a text.

    Args:
        parts: The content of the message.
        position: Number of the turn in messages.

    Returns:
        Text with placeholders; the image of each placeholder, or None for an image of the item;
        unused keys, each with the number of its part.

    Raises:
        ValueError: If a part is malformed or of an unknown type.
    """
    pieces: list[str] = []
    slots: list[ImageRef | None] = []
    extra: list[dict[str, Any]] = []
    for number, part in enumerate(parts):
        where = f"turn {position}: part {number}"
        if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
            raise ValueError(f"{where} must be an object with a 'type'")
        if part["type"] == "text":
            pieces = _add_text(pieces, _text(part, where))
        elif part["type"] in ("image", "image_url"):
            slots.append(_image(part, where))
            pieces.append(IMAGE_PLACEHOLDER)
        else:
            raise ValueError(f"{where} has the unsupported type {short(part['type'])}")
        rest = rest_of(part, _USED)
        if rest:
            extra.append({"part": number, **rest})
    return "\n".join(pieces), slots, extra


def _add_text(pieces: list[str], text: str) -> list[str]:
    """Return the pieces with a text appended; adjacent texts are joined, empty ones dropped."""
    if not text:
        return pieces
    if pieces and pieces[-1] != IMAGE_PLACEHOLDER:
        return [*pieces[:-1], pieces[-1] + text]
    return [*pieces, text]


def _text(part: Mapping[str, Any], where: str) -> str:
    text = part.get("text")
    if not isinstance(text, str):
        raise ValueError(f"{where}: 'text' must be a string")
    if IMAGE_PLACEHOLDER in text:
        raise ValueError(f"{where}: text cannot hold {IMAGE_PLACEHOLDER} where images are parts")
    _refuse_others(part, (*_SOURCES, "bytes"), where)
    return text


def _image(part: Mapping[str, Any], where: str) -> ImageRef | None:
    """Return the image of a part, or None if the part only marks a position."""
    _refuse_others(part, ("text", *_SIZES), where)
    keys = [key for key in _SOURCES if part.get(key) is not None]
    content = part.get("bytes")
    if len(keys) + (content is not None and "path" not in keys) > 1:
        raise ValueError(f"{where} has more than one image")
    if content is not None:
        row = {"bytes": content, "path": part.get("path")}
        check_row(row, "image")
        return row
    if not keys:
        if part["type"] == "image_url":
            raise ValueError(f"{where} has no 'image_url'")
        return None
    return _reference(part[keys[0]], keys[0], where)


def _reference(value: Any, key: str, where: str) -> ImageRef:
    if key == "image_url" and isinstance(value, Mapping):
        if value.get("detail") not in _DETAILS:
            detail = short(value["detail"])
            raise ValueError(f"{where} has the 'detail' {detail}, which is not supported")
        other = next(
            (k for k in value if k not in ("url", "detail") and has_content(value[k])), None
        )
        if other is not None:
            raise ValueError(f"{where}: 'image_url' has {other!r}, which is not supported")
        value = value.get("url")
    elif key == "image" and isinstance(value, Mapping):
        check_row(value, key)
        return value
    if isinstance(value, bytes) and value and key == "image":
        return value
    if not isinstance(value, str) or not value:
        raise ValueError(f"{where}: {key!r} must be a path, a URL or a data URI")
    return value


def _refuse_others(part: Mapping[str, Any], keys: Sequence[str], where: str) -> None:
    for key in keys:
        if has_content(part.get(key)):
            raise ValueError(
                f"{where} of type {part['type']!r} has {key!r}, which is not supported"
            )
