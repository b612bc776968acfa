"""Names the keys of an item that no reader uses, at any depth."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from dmole.data.shapes.checks import CHECKED_IN_ITEM, has_content
from dmole.data.shapes.objects import is_objects
from dmole.data.shapes.pictures import IMAGE_KEYS
from dmole.data.shapes.shape import Conversation, Shape

_ALWAYS = {"id", "question_id", "system", *IMAGE_KEYS}
_FACTS = {"size", "width", "height", "answer_index"}
"""Facts about the image or the answer that say nothing to a model."""

_REPEATED = {"hint", "question", "text", "txt", "cls", "answer", "answers", "choices"}
"""Keys that may repeat what a turn says: those of tables and archives, and of converted files."""


def unread_keys(
    item: Mapping[str, Any], conversation: Conversation, shape: Shape, others: Collection[str] = ()
) -> Iterator[str]:
    """Yield the keys with content that neither the shape nor a metric or prompt reads.

    Args:
        item: The item.
        conversation: What the shape read of it.
        shape: The shape of the item.
        others: Further keys that are read, by the metric or the prompt of the task.

    Returns:
        Names such as ``license``, ``turns.emotion`` and ``turns.parts.cache_control``.
    """
    read = {*_ALWAYS, *_FACTS, *others, *shape.reads(item)}
    for key, value in item.items():
        if key in read or key in CHECKED_IN_ITEM or not has_content(value):
            continue
        if key == "objects" and is_objects(value) and shape.name != "question":
            continue  # written into the text
        if key in _REPEATED and all(_is_said(part, conversation) for part in _parts(value)):
            continue
        yield str(key)
    for turn in conversation.metadata.get("turn_keys", ()):
        yield from (f"turns.{key}" for key in turn if key not in ("turn", "parts"))
        for part in turn.get("parts", ()):
            yield from (f"turns.parts.{key}" for key in part if key != "part")


def _parts(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else [value]


def _is_said(value: Any, conversation: Conversation) -> bool:
    """Return whether a text or number is part of a turn or a reference already."""
    text = str(value).strip()
    said = (*(turn.text for turn in conversation.turns), *conversation.references)
    return isinstance(value, str | int | float) and any(text in other for other in said)
