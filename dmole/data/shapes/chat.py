"""Builds a conversation from turns; shared by all shapes with turns."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dmole.data.sample import IMAGE_PLACEHOLDER, Turn
from dmole.data.shapes.checks import add_system, check_letters, check_order
from dmole.data.shapes.objects import write_objects
from dmole.data.shapes.pictures import (
    IMAGE_KEYS,
    are_paths,
    place_images,
    read_images,
)
from dmole.data.shapes.plain import plain
from dmole.data.shapes.shape import Conversation, ImageRef


@dataclass(frozen=True)
class Utterance:
    """One turn as written in the item.

    Args:
        turn: Role and text.
        slots: The image of each placeholder in the text, or None for an image of the item.
        extra: Keys of the turn that no reader uses.
    """

    turn: Turn
    slots: Sequence[ImageRef | None]
    extra: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of_text(cls, turn: Turn, extra: Mapping[str, Any] | None = None) -> Utterance:
        """Return the utterance of a text whose images belong to the item."""
        return cls(turn, [None] * turn.text.count(IMAGE_PLACEHOLDER), extra or {})


def assemble(
    item: Mapping[str, Any],
    utterances: Sequence[Utterance],
    used: Collection[str],
    references: tuple[str, ...] = (),
) -> Conversation:
    """Return the conversation of an item.

    Args:
        item: The item.
        utterances: Its turns in order, at least one.
        used: Keys that the turns are made of.
        references: Accepted answers, if the item has a list of them.

    Raises:
        ValueError: If the turns are out of order, or text, images and objects do not fit.
    """
    turns = [utterance.turn for utterance in utterances]
    check_order(turns)
    written = write_objects(item, add_system(item, turns))
    name = read_id(item)
    check_letters([name or "", *(turn.text for turn in written), *references])
    slots = [slot for utterance in utterances for slot in utterance.slots]
    placed, images = place_images(written, read_images(item), slots)
    metadata = read_metadata(item, {*used, "system"}, written[-2].text)
    extra = [
        {"turn": position, **utterance.extra}
        for position, utterance in enumerate(utterances)
        if utterance.extra
    ]
    return Conversation(
        placed, images, references, name, metadata | ({"turn_keys": extra} if extra else {})
    )


def read_id(item: Mapping[str, Any]) -> str | None:
    """Return the identifier of an item, if it has one."""
    for key in ("id", "question_id"):
        if item.get(key) is not None:
            return str(item[key])
    return None


def read_metadata(item: Mapping[str, Any], used: Collection[str], question: str) -> dict[str, Any]:
    """Return every key that is not part of the turns, without the content of images.

    Args:
        item: The item.
        used: Keys that are part of the turns.
        question: Text of the last user turn, as written.

    Raises:
        ValueError: If a key holds bytes: images, audio or video that no reader uses.
    """
    left_out = {"id", "question", *used}
    metadata: dict[str, Any] = {}
    for key, value in item.items():
        if value is None or key in left_out:
            continue
        # an empty 'image' stays: rules that need the name of the image score items without one
        if key not in IMAGE_KEYS or (are_paths(value) and (value or key == "image")):
            metadata[key] = plain(value, key)
    return metadata | {"question": question}
