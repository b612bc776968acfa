"""Checks that all shapes share, and the form of values in messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from dmole.data.sample import IMAGE_PLACEHOLDER, Turn
from dmole.messages import shortened

Role: TypeAlias = Literal["system", "user", "assistant"]

_MEDIA = ("video", "videos", "audio", "audios")
_PREFERENCES = (
    "chosen",
    "rejected",
    "rejected_response",
    "rejected_messages",
    "rejected_images",
    "kto_tag",
)
_WEIGHTS = ("loss", "loss_scale", "loss_weight", "loss_mask", "sample_weight")
CHECKED_IN_ITEM = frozenset((*_MEDIA, *_PREFERENCES, *_WEIGHTS, "tools"))
"""Keys that `refuse_unsupported` checks in every item; they carry no information afterwards."""

_CHECKED_IN_ITEM = CHECKED_IN_ITEM | {"functions", "weight", "weights", "label"}
_TURN = (
    *("image", "images", *_MEDIA),
    *("tools", "tool_calls", "tool_call_id", "function_call"),
    *("reasoning", "reasoning_content", "thinking"),
    *("mask", "masked"),
)
_TURN_WEIGHTS = ("weight", "weights", "train", "train_detail", "loss", "loss_scale", "loss_mask")
CHECKED_IN_TURN = {*_TURN, *_TURN_WEIGHTS}
"""Keys of a turn that `refuse_in_turn` checks; they carry no information afterwards."""


def short(value: object) -> str:
    """Return the value for a message; a long one is cut in the middle."""
    try:
        text = repr(value)
    except RecursionError:
        return f"a deep {type(value).__name__}"
    return shortened(text)


def has_content(value: Any) -> bool:
    """Return whether a value has content; null, false, blank texts and empty lists have none."""
    if isinstance(value, str):
        return value.strip() not in ("", "[]")
    if isinstance(value, bytes | list | tuple | Mapping):
        return len(value) > 0
    return value is not None and value is not False


def refuse_unsupported(item: Mapping[str, Any], *, chat: bool) -> None:
    """Reject keys that would change the sample but are not supported.

    Args:
        item: The item.
        chat: Whether the item is a conversation. A question may have functions, a weight or a
            label as properties of the object in its image.

    Raises:
        ValueError: If such a key has content.
    """
    if _CHECKED_IN_ITEM.isdisjoint(item):  # fast path: a file may hold a million items
        return
    for key in (*_MEDIA, *_PREFERENCES, "tools", *(("functions",) if chat else ())):
        if has_content(item.get(key)):
            raise ValueError(f"has {key!r}, which is not supported")
    for key in (*_WEIGHTS, *(("weight", "weights") if chat else ())):
        if item.get(key) is not None and not _is_one(item[key]):
            raise ValueError(f"has {key!r}, which is not supported: all answers weigh the same")
    if chat and isinstance(item.get("label"), bool):
        raise ValueError("has a 'label' of true or false, and preferences are not supported")


def refuse_history(item: Mapping[str, Any]) -> None:
    """Reject earlier turns beside a list of turns, which already holds them.

    Raises:
        ValueError: If ``history`` has content.
    """
    if has_content(item.get("history")):
        raise ValueError("has both a list of turns and a 'history': put all turns into the list")


def refuse_in_turn(entry: Mapping[str, Any], role: Role, position: int) -> None:
    """Reject keys of one turn that would change the sample but are not supported.

    Raises:
        ValueError: If such a key has content, or a weight differs from 1 for answers and 0 for
            other turns.
    """
    if CHECKED_IN_TURN.isdisjoint(entry):
        return
    for key in _TURN:
        if has_content(entry.get(key)):
            raise ValueError(f"turn {position} has {key!r}, which is not supported")
    for key in _TURN_WEIGHTS:
        value = entry.get(key)
        usual = _is_one(value) if role == "assistant" else _is_zero(value)
        if value is not None and not usual:
            raise ValueError(
                f"turn {position} has {key!r} {short(value)}, which is not supported: "
                "every answer is learned, and nothing else"
            )


def check_turn(role: Role, text: Any, position: int, key: str) -> Turn:
    """Return a turn.

    Args:
        role: Role of the speaker.
        text: Text of the turn.
        position: Number of the turn in messages.
        key: Key of the text in messages.

    Raises:
        ValueError: If the text is not a string, an answer is empty, or an answer or a system turn
            holds an image.
    """
    if not isinstance(text, str):
        raise ValueError(f"turn {position}: {key!r} must be a string")
    if role == "assistant" and not text.strip():
        raise ValueError(f"turn {position}: the answer is empty")
    if role != "user" and IMAGE_PLACEHOLDER in text:
        speaker = "an answer" if role == "assistant" else "a system turn"
        raise ValueError(f"turn {position}: {speaker} cannot hold {IMAGE_PLACEHOLDER}")
    return Turn(role, text)


def check_order(turns: Sequence[Turn]) -> None:
    """Reject turns unless they are an optional system turn, then user and assistant alternately.

    Raises:
        ValueError: If a turn is out of order or the last turn is not an answer.
    """
    roles = [turn.role for turn in turns]
    first = int(roles[0] == "system")
    for position, role in enumerate(roles[first:], first):
        if role == "system":
            raise ValueError(
                f"turn {position} has the role 'system': only the first turn may have it"
            )
        if role != ("user", "assistant")[(position - first) % 2]:
            raise ValueError(
                f"turn {position} has the role {role!r}: user and assistant must alternate"
            )
    if roles[-1] != "assistant":
        raise ValueError(f"the last turn has the role {roles[-1]!r}: there is no answer")


def add_system(item: Mapping[str, Any], turns: Sequence[Turn]) -> list[Turn]:
    """Return the turns, preceded by the key ``system`` as a turn; blank system turns are left out.

    Raises:
        ValueError: If the key does not hold a string, or there are two system turns.
    """
    kept = [turn for turn in turns if turn.role != "system" or turn.text.strip()]
    text = item.get("system")
    if text is None or (isinstance(text, str) and not text.strip()):
        return kept
    if not isinstance(text, str):
        raise ValueError(f"'system' must be a string, got {short(text)}")
    if IMAGE_PLACEHOLDER in text:
        raise ValueError(f"'system' cannot hold {IMAGE_PLACEHOLDER}")
    if kept and kept[0].role == "system":
        raise ValueError("has both a 'system' key and a system turn")
    return [Turn("system", text), *kept]


def check_letters(texts: Iterable[str]) -> None:
    """Reject half a surrogate pair, which cannot be encoded in a file.

    Raises:
        ValueError: If a text contains one.
    """
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = text[error.start]
            raise ValueError(f"text holds {half!r}, half of a character: {short(text)}") from error


def _is_one(value: Any) -> bool:
    return isinstance(value, int | float) and value == 1


def _is_zero(value: Any) -> bool:
    return isinstance(value, int | float) and value == 0
