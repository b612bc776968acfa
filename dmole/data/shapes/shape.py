"""The shape of an item: how to recognise it and how to read it as a conversation."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from dmole.data.sample import Turn

ImageRef = str | bytes | Mapping[str, Any]
"""An image in an item: a path, a URL or data URI, encoded bytes, or a mapping with the
keys ``bytes`` and ``path``, either of which may be None."""


@dataclass(frozen=True)
class Conversation:
    """The content of an item, independent of its shape.

    Args:
        turns: The turns in order: at most one system turn, which comes first, then user and
            assistant alternately. The last turn is the assistant's. Each image has a placeholder
            ``<image>`` in the text of a user turn; if a conversation has images but no
            placeholder, they precede its first question.
        images: The images of the item, in the order of the placeholders.
        references: Accepted answers, including the last turn, if the item has several; empty if
            the last turn is the only one.
        id: Id of the item, None if it has none.
        metadata: Further facts that a metric may need, such as ``choices``, ``size``,
            ``category`` or ``question``. Plain JSON values.
    """

    turns: tuple[Turn, ...]
    images: tuple[ImageRef, ...] = ()
    references: tuple[str, ...] = ()
    id: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


class Shape(Protocol):
    """A shape of items.

    Attributes:
        name: The name in messages and reports, such as ``llava``.
        keys: Short description of the keys that define the shape, for messages.
    """

    name: str
    keys: str

    def matches(self, item: Mapping[str, Any]) -> bool:
        """Return whether an item has this shape, by its keys and the types of their values."""
        ...

    def reads(self, item: Mapping[str, Any]) -> Collection[str]:
        """Return the keys of an item that `read` uses, besides ids, images and ``system``."""
        ...

    def read(self, item: Mapping[str, Any]) -> Conversation:
        """Return the conversation of an item of this shape.

        Raises:
            ValueError: If the item is malformed, or holds an unsupported key that changes its
                meaning. The message names neither file nor item; the caller adds them.
        """
        ...
