"""What the shape of an item is: how to recognise it and how to read it as a conversation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from dmole.data.sample import Turn

ImageRef = str | bytes | Mapping[str, Any]
"""An image as an item holds it: a path, a URL or data URI, encoded bytes, or a mapping with the
keys ``bytes`` and ``path``, either of which may be None."""


@dataclass(frozen=True)
class Conversation:
    """What an item says, whatever its shape.

    Args:
        turns: The turns in order: at most one system turn, which comes first, then user and
            assistant in turn. The last turn is the assistant's. Each image has a placeholder
            ``<image>`` in the text of a user turn; a conversation with images and no placeholder
            gets them before its first question.
        images: The images as the item holds them, in the order of the placeholders.
        references: Accepted answers where the item gives several, the last turn among them;
            empty where the last turn is the only one.
        id: Id of the item, None where it has none.
        metadata: What a metric may need beside the answer, such as ``choices``, ``size``,
            ``category`` or ``question``. Plain JSON values.
    """

    turns: tuple[Turn, ...]
    images: tuple[ImageRef, ...] = ()
    references: tuple[str, ...] = ()
    id: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


class Shape(Protocol):
    """One way of writing an item.

    Attributes:
        name: The name in messages and reports, such as ``llava``.
        keys: The keys that make an item this shape, in a few words for messages.
    """

    name: str
    keys: str

    def matches(self, item: Mapping[str, Any]) -> bool:
        """Return whether an item has this shape, by its keys and the types of their values."""
        ...

    def read(self, item: Mapping[str, Any]) -> Conversation:
        """Return the conversation of an item of this shape.

        Raises:
            ValueError: If the item is malformed, or holds a key that changes what it says and
                cannot be read. The message names neither file nor item; the caller does.
        """
        ...
