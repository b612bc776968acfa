"""What a shape of data is, and what reading an item of it returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias, cast

from dmole.data.sample import Turn

Role: TypeAlias = Literal["system", "user", "assistant"]
ImageRef: TypeAlias = str | bytes | Mapping[str, Any]
"""An image as it is written: path, URL or data URI; content; or a row of ``bytes`` and ``path``."""


@dataclass(frozen=True)
class Conversation:
    """One item of a file, whatever its shape: turns, images and accepted answers.

    Args:
        turns: At most one system turn, then user and assistant in turn; an assistant turn is
            last. ``<image>`` stands in the text where an image stands.
        images: One for each placeholder, in their order.
        references: Accepted answers, where the item holds a list of them. The last turn is the
            first of them that is not empty. Without a list, the last turn is the one answer.
        id: The item's identifier, if it has one.
        metadata: Every other key of the item, and ``question``, the text of the last user turn
            as it is written. A metric may need them.
    """

    turns: tuple[Turn, ...]
    images: tuple[ImageRef, ...] = ()
    references: tuple[str, ...] = ()
    id: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


class Shape(Protocol):
    """A way in which people write conversations, told apart by the keys of an item."""

    @property
    def name(self) -> str:
        """Name in messages and in the configuration."""
        ...

    @property
    def keys(self) -> str:
        """Keys that an item of this shape has, in one line."""
        ...

    def matches(self, item: Mapping[str, Any]) -> bool:
        """Return whether an item has the keys of this shape. Never raises."""
        ...

    def read(self, item: Mapping[str, Any]) -> Conversation:
        """Return the conversation of an item.

        Raises:
            ValueError: If the item is malformed. The message names neither file nor position.
        """
        ...


def make_turn(role: Role, text: str) -> Turn:
    """Return a turn of any of the three roles."""
    return Turn(cast(Any, role), text)
