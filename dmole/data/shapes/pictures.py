"""Reads the images of an item and assigns them to the placeholders in its text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from dmole.data.sample import IMAGE_PLACEHOLDER, Turn
from dmole.data.shapes.checks import short
from dmole.data.shapes.shape import ImageRef

IMAGE_KEYS = ("image", "images")


def read_images(item: Mapping[str, Any]) -> tuple[ImageRef, ...]:
    """Return the images under ``image`` or ``images``, one or a list of them.

    Raises:
        ValueError: If a value is not an image, or both keys hold images.
    """
    keys = [key for key in IMAGE_KEYS if not _is_empty(item.get(key))]
    if len(keys) > 1:
        raise ValueError("has images under both 'image' and 'images'")
    if not keys:
        return ()
    value = item[keys[0]]
    images = value if isinstance(value, list | tuple) else [value]
    for image in images:
        if isinstance(image, Mapping):
            check_row(image, keys[0])
        elif not isinstance(image, str | bytes):
            raise ValueError(f"{keys[0]!r} must be a path or a list of paths, got {short(value)}")
    return tuple(images)


def check_row(image: Mapping[str, Any], key: str) -> None:
    """Reject a row of ``bytes`` and ``path`` that holds neither.

    Raises:
        ValueError: If both are missing or of another type.
    """
    content, path = image.get("bytes"), image.get("path")
    if content is not None and not isinstance(content, bytes):
        raise ValueError(f"{key!r}: 'bytes' must be bytes, got {type(content).__name__}")
    if path is not None and not isinstance(path, str):
        raise ValueError(f"{key!r}: 'path' must be a string, got {type(path).__name__}")
    if not content and not path:
        raise ValueError(f"{key!r} has an image with neither 'bytes' nor 'path'")


def are_paths(value: Any) -> TypeGuard[str | list[str]]:
    """Return whether a value is a path or a list of paths rather than the content of images."""
    names = value if isinstance(value, list | tuple) else [value]
    return all(isinstance(name, str) and not name.startswith("data:") for name in names)


def place_images(
    turns: Sequence[Turn], images: Sequence[ImageRef], slots: Sequence[ImageRef | None]
) -> tuple[tuple[Turn, ...], tuple[ImageRef, ...]]:
    """Assign an image to every placeholder; without any, images precede the first question.

    Args:
        turns: The conversation.
        images: Images of the whole item, in order.
        slots: The image of each placeholder, or None for the next one of ``images``.

    Returns:
        Turns with placeholders, and the images in their order.

    Raises:
        ValueError: If placeholders and images differ in number.
    """
    if not slots and images:
        return put_first(turns, len(images)), tuple(images)
    count = len(images) + sum(slot is not None for slot in slots)
    if count != len(slots):
        raise ValueError(f"has {count} images and {len(slots)} {IMAGE_PLACEHOLDER} placeholders")
    rest = iter(images)
    return tuple(turns), tuple(next(rest) if slot is None else slot for slot in slots)


def put_first(turns: Sequence[Turn], count: int) -> tuple[Turn, ...]:
    """Return turns with placeholders before the first question."""
    first = next(position for position, turn in enumerate(turns) if turn.role == "user")
    text = f"{IMAGE_PLACEHOLDER}\n" * count + turns[first].text
    return (*turns[:first], Turn("user", text), *turns[first + 1 :])


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str | list | tuple) and not value)
