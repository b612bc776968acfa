"""Writes the names and boxes of ``objects`` into the text, for data of ms-swift."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from dmole.data.sample import IMAGE_PLACEHOLDER, Turn
from dmole.data.shapes.checks import short

_NAME, _BOX = "<ref-object>", "<bbox>"
_MARK = re.compile(f"{_NAME}|{_BOX}")
_UNITS = ("real", "norm1")
"""Boxes in pixels, or in fractions of width and height. They are written unchanged."""


def is_objects(value: Any) -> bool:
    """Return whether a value under ``objects`` holds names and boxes to be written."""
    return isinstance(value, Mapping) and ("ref" in value or "bbox" in value)


def has_marks(item: Mapping[str, Any], texts: Iterable[str]) -> bool:
    """Return whether texts have marks for the objects of an item."""
    return is_objects(item.get("objects")) and any(_MARK.search(text) for text in texts)


def write_objects(item: Mapping[str, Any], turns: Sequence[Turn]) -> list[Turn]:
    """Return turns with a name for each ``<ref-object>`` and a box for each ``<bbox>``.

    Args:
        item: The item; ``objects`` holds ``ref``, a list of names, ``bbox``, a list of boxes of
            two or four numbers, and ``bbox_type``, their unit.
        turns: The conversation.

    Raises:
        ValueError: If ``objects`` is malformed, or marks and objects differ in number.
    """
    objects = item.get("objects")
    if not is_objects(objects):
        return list(turns)
    assert isinstance(objects, Mapping)  # is_objects checks this
    unit = objects.get("bbox_type")
    if unit is not None and unit not in _UNITS:
        raise ValueError(f"'bbox_type' must be 'real' or 'norm1', got {short(unit)}")
    values = {
        _NAME: [_name(name) for name in _list(objects, "ref")],
        _BOX: [_box(box) for box in _list(objects, "bbox")],
    }
    for mark, key in ((_NAME, "ref"), (_BOX, "bbox")):
        count = sum(turn.text.count(mark) for turn in turns)
        if count != len(values[mark]):
            raise ValueError(f"has {len(values[mark])} {key!r} objects and {count} {mark} in text")
    fill = _filler({mark: iter(texts) for mark, texts in values.items()})
    return [Turn(turn.role, _MARK.sub(fill, turn.text)) for turn in turns]


def _filler(texts: Mapping[str, Iterator[str]]) -> Callable[[re.Match[str]], str]:
    return lambda match: next(texts[match[0]])


def _list(objects: Mapping[str, Any], key: str) -> Sequence[Any]:
    value = objects.get(key)
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise ValueError(f"'objects': {key!r} must be a list, got {short(value)}")
    return value


def _name(value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or IMAGE_PLACEHOLDER in value:
        raise ValueError(f"'objects': 'ref' must hold names, got {short(value)}")
    return value


def _box(value: Any) -> str:
    """Return a box as text: ``[10, 20, 30, 40]``."""
    numbers = value if isinstance(value, list | tuple) else ()
    if len(numbers) not in (2, 4) or not all(map(_is_number, numbers)):
        raise ValueError(f"'objects': 'bbox' must hold lists of 2 or 4 numbers, got {short(value)}")
    return str(list(numbers))


def _is_number(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)
