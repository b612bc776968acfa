"""Determines the shape of a file from its first items and checks other items against it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dmole.data.shapes.chat import read_id
from dmole.data.shapes.checks import short
from dmole.data.shapes.conversations import ConversationsShape
from dmole.data.shapes.messages import CompletionShape, MessagesShape
from dmole.data.shapes.query import QueryShape
from dmole.data.shapes.question import QuestionShape
from dmole.data.shapes.shape import Shape

SHAPES: dict[str, Shape] = {
    shape.name: shape
    for shape in (
        ConversationsShape(),
        MessagesShape(),
        CompletionShape(),
        QueryShape(),
        QuestionShape(),
    )
}
"""All shapes by name."""


def recognise(items: Sequence[Mapping[str, Any]]) -> Shape:
    """Return the one shape that all items have.

    Args:
        items: The first items of a file.

    Raises:
        ValueError: If there are no items, an item has no shape, two items differ in shape, or all
            share more than one shape. The message is one line that names positions and shapes.
    """
    if not items:
        raise ValueError("there are no items to determine a shape from")
    common = list(SHAPES.values())
    for position, item in enumerate(items):
        shapes = shapes_of(item)
        if not shapes:
            raise ValueError(f"{_item(item, position)}: {no_shape(item)}")
        before, common = common, [shape for shape in common if shape in shapes]
        if not common:
            raise ValueError(
                f"{_item(item, position)} has the shape {_names(shapes)}, but the items before it "
                f"have {_names(before)}: a file holds one shape"
            )
    if len(common) > 1:
        described = " and ".join(f"{shape.name!r} ({shape.keys})" for shape in common)
        last = len(items) - 1
        which = f"items 0 to {last} have" if last else f"{_item(items[0], 0)} has"
        raise ValueError(f"{which} more than one shape: {described}")
    return common[0]


def check_shape(item: Mapping[str, Any], shape: Shape) -> None:
    """Reject an item whose shape differs from that of its file.

    Args:
        item: The item.
        shape: The shape of the first items of the file.

    Raises:
        ValueError: If the item has another shape or none. The message names no position.
    """
    if shape.matches(item):
        return
    others = shapes_of(item)
    if not others:
        raise ValueError(no_shape(item))
    raise ValueError(f"has the shape {_names(others)}, but the first items have {shape.name!r}")


def shapes_of(item: Mapping[str, Any]) -> list[Shape]:
    """Return all shapes that an item matches."""
    return [shape for shape in SHAPES.values() if shape.matches(item)]


def no_shape(item: Mapping[str, Any]) -> str:
    """Return the message for an item that matches no shape."""
    others = ", ".join(name for name in SHAPES if name not in ("conversations", "question"))
    return (
        f"has neither 'conversations' nor 'text' nor the keys of another shape ({others}): "
        f"its keys are {short(sorted(item, key=str))}"
    )


def _item(item: Mapping[str, Any], position: int) -> str:
    return f"item {position} (id {(read_id(item) or str(position))!r})"


def _names(shapes: Sequence[Shape]) -> str:
    return " or ".join(repr(shape.name) for shape in shapes)
